"""Grafana: dashboards made from the metric registry, and how they are provisioned."""
