# vera-bench in a container, by the steps of make setup. No image was built of this file yet: the project's machines have
# no Docker. tests/test_shipped.py reads the file.
#
#   docker build -t vera-bench .
#   docker build -t vera-bench --build-arg TORCH_INDEX=INDEX .
#   docker run --rm -v vera-bench:/home/vera/vera-bench/outputs vera-bench make demo
#   docker run --rm --gpus all -v vera-bench:/home/vera/vera-bench/outputs vera-bench python -m runs device=cuda
#
# TORCH_INDEX picks torch's build: for a CPU, or for a version of CUDA. It is the address after --index-url in the command
# that pytorch.org shows for them. Without it torch is the build of pip's own index, which on x86-64 brings CUDA along.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim
ARG TORCH_INDEX=
ARG CONSTRAINTS=constraints.txt

# git: records name the commit of the code. Java: three of E2E's five scores.
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends default-jre-headless git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home vera \
    && install -d -o vera -g vera /home/vera/vera-bench /home/vera/vera-bench/outputs

USER vera
WORKDIR /home/vera/vera-bench

# What make setup reads. Other files may change without another installation.
COPY --chown=vera:vera Makefile pyproject.toml constraints.txt hatch_build.py README.md LICENSE ./
RUN PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL="$TORCH_INDEX" make setup CONSTRAINTS="$CONSTRAINTS"

COPY --chown=vera:vera . .
ENV PATH="/home/vera/vera-bench/.venv/bin:$PATH"
CMD ["make", "help"]
