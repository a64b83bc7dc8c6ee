"""Data of the user's own: tables, texts and arrays from files, images from folders, split and told what was done to them."""

from metagradient.data.own.arrays import array_file
from metagradient.data.own.pictures import image_folder
from metagradient.data.own.tables import table_file
from metagradient.data.own.targets import class_numbers
from metagradient.data.own.texts import text_file

__all__ = ["array_file", "class_numbers", "image_folder", "table_file", "text_file"]
