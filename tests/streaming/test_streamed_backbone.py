"""A streamed backbone is prepared like a loaded one."""

from pathlib import Path

import torch
from models import tiny_gpt2, tiny_tokenizer
from transformers import AutoModelForSequenceClassification

from sieve.config import ModelConfig
from sieve.model.backbone import load_backbone
from sieve.streaming.streamed_backbone import load_streamed


def test_a_streamed_classifier_pads_like_a_loaded_one(tmp_path: Path) -> None:
    config = tiny_gpt2().config
    config.pad_token_id, config.num_labels = None, 2
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    settings, cpu = ModelConfig(path=str(tmp_path)), torch.device("cpu")
    loaded = load_backbone(settings, cpu)
    streamed = load_streamed(settings, cpu, head=False, load=lambda: loaded)
    assert streamed.skeleton.config.pad_token_id == loaded.model.config.pad_token_id is not None
    assert streamed.tokenizer.pad_token_id == loaded.tokenizer.pad_token_id
    assert (streamed.dtype, streamed.parameters) == (loaded.dtype, loaded.parameters)
    assert (streamed.fingerprint, streamed.name) == (loaded.fingerprint, loaded.name)
