# An image that runs the gate, or any other command of trl-attribution, on what is mounted at /work:
#   docker build --build-arg PIP_EXTRA_INDEX_URL -t trl-attribution .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" trl-attribution gate data/ --policy gate.yaml
FROM python:3.11-slim

# The gate compares with what git has.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*

# An index with CPU builds of PyTorch: the default ones bring several gigabytes of CUDA libraries.
ARG PIP_EXTRA_INDEX_URL
COPY . /source
RUN pip install --no-cache-dir --constraint /source/constraints.txt "/source[demo,peft]" \
    && rm -r /source

# Whoever runs it can write what it caches.
RUN mkdir -m 1777 -p /home/gate
ENV HOME=/home/gate
WORKDIR /work
ENTRYPOINT ["trl-attribution"]
