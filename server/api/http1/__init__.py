"""HTTP/1.1 on a connection: heads, bodies, answers, and how connections share the loop."""
