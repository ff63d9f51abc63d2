"""What runs around Quire: Prometheus, Grafana, containers. No part of the installed package."""
