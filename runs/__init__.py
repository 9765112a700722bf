import logging

# Which warns as it is imported, whether anyone uses it or not
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
