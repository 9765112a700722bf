"""What VeRA costs beside peft and the base model. See __main__.py, which is the command."""
