"""Speed beside peft and transformers, outside the product. The command is
__main__.py."""
