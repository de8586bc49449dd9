"""Write k8s/monitoring/prometheusrule.yaml, the rules as the Prometheus operator wants them, from the plain files.

The plain files are the source (promtool and a Prometheus without its operator read them); a test holds the two equal.
"""

import sys
from pathlib import Path

MONITORING = Path(__file__).resolve().parent.parent / "k8s" / "monitoring"
RESOURCE = MONITORING / "prometheusrule.yaml"
_HEAD = """\
# Written by tools/prometheus_rule.py from rules/*.yaml; change those.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: holdfast
  labels:
    app.kubernetes.io/name: holdfast
spec:
  groups:
"""


def assembled(folder: Path = MONITORING / "rules") -> str:
    """The resource: the groups of each file, one level deeper, comments and all."""
    parts = [_HEAD]
    for path in sorted(folder.glob("*.yaml")):
        _, _, groups = path.read_text().partition("groups:\n")
        parts += [f"  {line}\n" if line else "\n" for line in groups.splitlines()]
    return "".join(parts)


if __name__ == "__main__":
    RESOURCE.write_text(assembled())
    sys.exit(0)
