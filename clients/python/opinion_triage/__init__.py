"""Client for the opinion-triage service. Standard library only.

    from opinion_triage import Client

    with Client("http://127.0.0.1:8080") as client:
        result = client.classify("小区停水三天了，物业没人管")
        print(result["type"]["zh"], result["review"]["required"])

A result is a proposal; a person decides.
"""

from .client import Client, ItemRefused, Problem, Unreachable

__all__ = ["Client", "ItemRefused", "Problem", "Unreachable"]
