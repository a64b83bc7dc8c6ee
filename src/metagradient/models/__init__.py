"""Models: plain `nn.Module`s that know nothing of the rest of metagradient."""

from metagradient.models.adapters import LoRALinear, lora
from metagradient.models.causal import hf_causal
from metagradient.models.classifiers import linear, mlp
from metagradient.models.gpt import GPT, SentenceClassifier
from metagradient.models.pretrained import (
    ImageClassifier,
    TextClassifier,
    hf_image_classifier,
    hf_text_classifier,
    timm,
)
from metagradient.models.resnet import ResNet9, resnet9
from metagradient.models.tables import TableMLP
from metagradient.models.towers.foreign import hf_clip, open_clip
from metagradient.models.towers.images import VisionTransformer
from metagradient.models.towers.named import image_text_model
from metagradient.models.towers.texts import BagOfWords, TextTransformer
from metagradient.models.two_tower import TwoTower
from metagradient.models.weights import load_weights, read_weights

__all__ = [
    "GPT",
    "BagOfWords",
    "ImageClassifier",
    "LoRALinear",
    "ResNet9",
    "SentenceClassifier",
    "TableMLP",
    "TextClassifier",
    "TextTransformer",
    "TwoTower",
    "VisionTransformer",
    "hf_causal",
    "hf_clip",
    "hf_image_classifier",
    "hf_text_classifier",
    "image_text_model",
    "linear",
    "load_weights",
    "lora",
    "mlp",
    "open_clip",
    "read_weights",
    "resnet9",
    "timm",
]
