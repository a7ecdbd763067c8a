"""A PhysioNet look-alike: serves a dataset folder over HTTP with PhysioNet's protocol, speed and failures.

    with Lookalike(root, users={"alice": User("secret")}) as physionet:
        physionet.faults.add(Fault(Kind.STALL, paths="*.jpg", share=0.05))
        physionet.profile = as_users_report_it(connections=8)
        ...  # clients work against physionet.url
        assert physionet.counters.password_checks == 1

As a process of its own: ``python -m demo.lookalike --help``.
"""

from demo.lookalike.access import User
from demo.lookalike.counters import Counters, Seen
from demo.lookalike.faults import Fault, Kind
from demo.lookalike.profiles import UNLIMITED, Profile, as_users_report_it
from demo.lookalike.server import Lookalike

__all__ = ["UNLIMITED", "Counters", "Fault", "Kind", "Lookalike", "Profile", "Seen", "User", "as_users_report_it"]
