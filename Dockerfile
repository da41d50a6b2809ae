# Trains and evaluates in the folder that is mounted at /work:
#
#   docker build -t resnet_pl .
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" -v "$PWD:/work" resnet_pl fit --config folder --data.root my/photos
#
# Without a GPU, omit `--gpus all`, and save several gigabytes: docker build --build-arg PYTORCH=cpu -t resnet_pl .
FROM python:3.12-slim

# cuda: the packages of requirements.lock, whose PyTorch contains CUDA. cpu: those of requirements.txt, with another PyTorch.
ARG PYTORCH=cuda
WORKDIR /app
COPY requirements.txt requirements.lock ./
RUN if [ "$PYTORCH" = cpu ]; then \
        pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.txt; \
    else \
        pip install --no-cache-dir --require-hashes -r requirements.lock; \
    fi
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY resnet_pl resnet_pl
RUN pip install --no-cache-dir --no-deps .

# Any user can write caches, and needs no account.
ENV HOME=/tmp USER=user
USER 1000
WORKDIR /work
ENTRYPOINT ["resnet-pl"]
CMD ["--help"]
