"""Grafana's dashboards as code; `./scripts/generate` writes the JSON that Grafana reads."""
