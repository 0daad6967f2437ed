# One image for every service: plan, work, report, and Optuna's dashboard.
# For NVIDIA GPUs: docker build --build-arg TORCH_BACKEND=cu130 --tag adamom:gpu .

FROM python:3.11-slim AS build
# What uv calls a backend: cpu, cu126, cu130, … Empty takes the build that your own package index has.
ARG TORCH_BACKEND=cpu
ENV VIRTUAL_ENV=/opt/adamom
RUN pip install --no-cache-dir "uv>=0.7.14,<1" && uv venv "$VIRTUAL_ENV"
WORKDIR /source
# The dependencies are a layer of their own: a change in our code installs only our code again.
COPY pyproject.toml ./
RUN uv pip install --no-cache ${TORCH_BACKEND:+--torch-backend="$TORCH_BACKEND"} \
    --requirement pyproject.toml --extra service
COPY . .
RUN uv pip install --no-cache --no-deps .

FROM python:3.11-slim
# The steps of many trials on a CPU are compiled where they run.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/adamom /opt/adamom
COPY docker-entrypoint.sh /usr/local/bin/
# The commit that every trial is stored with: docker build --build-arg COMMIT="$(git rev-parse --short=12 HEAD)" .
ARG COMMIT=released
ENV ADAMOM_COMMIT=$COMMIT
# HOME and USER are for libraries that ask; whoever runs the image need not be in its list of users.
ENV PATH=/opt/adamom/bin:$PATH HOME=/tmp USER=adamom
RUN useradd --uid 1000 --no-create-home adamom && install --directory --owner adamom /reports
USER 1000:1000
WORKDIR /reports
ENTRYPOINT ["docker-entrypoint.sh", "adamom"]
CMD ["--help"]
