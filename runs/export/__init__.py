"""Writes a finished run's adapter for use elsewhere: folder.py in peft's format with tokenizer and card,
card.py the model card from the record, lora.py converted to LoRA, push.py onto the hub."""
