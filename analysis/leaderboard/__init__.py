"""The leaderboard of huggingface/peft's method comparison, with its uncertainty.

reader.py reads folders of result files into one frame; inference.py answers two
questions about a pair of rows; board.py puts both together; tables.py, picture.py and
page.py show it. `vera-bench table leaderboard=FOLDER` is the command."""
