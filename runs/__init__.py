import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which warns as it is imported, whether anyone uses it or not
