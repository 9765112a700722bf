"""Speed beside peft and transformers, and of commands, outside the product. The command
is __main__.py."""
