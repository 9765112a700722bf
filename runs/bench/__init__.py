"""The cost of VeRA beside peft and the base model. The command is __main__.py."""
