"""Models: plain `nn.Module`s that know nothing of the rest of metagradient."""

from metagradient.models.adapters import LoRALinear, lora
from metagradient.models.classifiers import linear, mlp
from metagradient.models.gpt import GPT, SentenceClassifier
from metagradient.models.resnet import ResNet9, resnet9
from metagradient.models.two_tower import TwoTower

__all__ = ["GPT", "LoRALinear", "ResNet9", "SentenceClassifier", "TwoTower", "linear", "lora", "mlp", "resnet9"]
