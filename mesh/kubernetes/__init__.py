"""Kubernetes and Istio manifests, rendered from the topology: a kustomize base and an overlay for each environment.

python -m mesh.kubernetes           write `rendered/` and `compose.yaml`
python -m mesh.kubernetes --check   fail, naming the files, when they are stale

Everything is built from typed objects: Kubernetes' own from `lightkube-models`, Istio's from `istio.py`. What
differs between environments is in `overlays.py` and nowhere else.
"""
