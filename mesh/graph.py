"""Who calls whom and who hears whose events, as text, as Mermaid and for Graphviz."""

from collections.abc import Callable, Iterable
from itertools import groupby

from services.chassis.spec import ServiceSpec


def events(specs: Iterable[ServiceSpec]) -> list[tuple[str, str, str]]:
    """(publisher, event, subscriber) of every subscription. An event's package says whose it is."""
    found = []
    for spec in specs:
        for event in spec.subscribes:
            *_, publisher, _, name = event.split(".")
            found.append((publisher.replace("_", "-"), name, spec.id))
    return sorted(found)


def text(specs: Iterable[ServiceSpec]) -> str:
    specs = list(specs)
    parts = []
    for domain, group in _by_domain(specs):
        parts.append(domain)
        width = max(len(spec.id) for spec in group)
        for spec in group:
            parts.append(f"  {spec.id:{width}}  {'→ ' + ', '.join(spec.may_call) if spec.may_call else ''}".rstrip())
            heard: dict[str, list[str]] = {}
            for _, event, subscriber in (each for each in events(specs) if each[0] == spec.id):
                heard.setdefault(event, []).append(subscriber)
            parts += [f"  {'':{width}}  {event} ▸ {', '.join(names)}" for event, names in heard.items()]
    return "\n".join(parts)


def mermaid(specs: Iterable[ServiceSpec]) -> str:
    """Calls are solid, events dotted."""
    specs = list(specs)
    parts = ["graph LR"]
    for domain, group in _by_domain(specs):
        parts += [f"  subgraph {domain}", *(f"    {spec.id}" for spec in group), "  end"]
    parts += [f"  {spec.id} --> {callee}" for spec in specs for callee in spec.may_call]
    parts += [f"  {publisher} -. {event} .-> {subscriber}" for publisher, event, subscriber in events(specs)]
    return "\n".join(parts)


def dot(specs: Iterable[ServiceSpec]) -> str:
    specs = list(specs)
    parts = ["digraph nexus {", "  rankdir=LR;"]
    for domain, group in _by_domain(specs):
        names = " ".join(f'"{spec.id}";' for spec in group)
        parts.append(f'  subgraph "cluster_{domain}" {{ label="{domain}"; {names} }}')
    parts += [f'  "{spec.id}" -> "{callee}";' for spec in specs for callee in spec.may_call]
    parts += [
        f'  "{publisher}" -> "{subscriber}" [style=dotted, label="{event}"];'
        for publisher, event, subscriber in events(specs)
    ]
    return "\n".join([*parts, "}"])


def _by_domain(specs: Iterable[ServiceSpec]) -> list[tuple[str, list[ServiceSpec]]]:
    ordered = sorted(specs, key=lambda spec: (spec.domain, spec.port))
    return [(domain, list(group)) for domain, group in groupby(ordered, key=lambda spec: spec.domain)]


NOTATIONS: dict[str, Callable[[Iterable[ServiceSpec]], str]] = {"text": text, "mermaid": mermaid, "dot": dot}
