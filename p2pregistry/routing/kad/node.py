"""What a server answers, as a plain function of the message, the sender and the state.

The sender's id is the one its connection has proved; nothing in a message is believed about anybody else's records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2pregistry.errors import BadContent
from p2pregistry.routing.kad.store import ProviderStore
from p2pregistry.routing.kad.table import RoutingTable, position
from p2pregistry.routing.kad.wire import Contact, Kind, Message

#: Providers named in one answer at most.
PROVIDERS_IN_ANSWER = 20

#: Picks that many of the contacts at random.
Sample = Callable[[Sequence[Contact], int], list[Contact]]


def answer(
    message: Message,
    sender: bytes,
    *,
    table: RoutingTable,
    store: ProviderStore,
    now: float,
    closer: int,
    sample: Sample,
    own: Contact | None = None,
) -> Message | None:
    """The answer to ``message``, or None where the protocol has none (ADD_PROVIDER).

    ``closer`` is how many nearer peers an answer names. ``own`` is this node, where it holds the key itself: its word
    on that needs no record, and is still there when those who kept the records are gone. Raises BadContent for what is
    no business of this node (values, empty keys); the stream should be reset.
    """
    if message.kind is Kind.PING:
        return Message(Kind.PING)
    if not message.key or message.kind in (Kind.GET_VALUE, Kind.PUT_VALUE):
        raise BadContent("a DHT request without a key, or for a value")
    if message.kind is Kind.ADD_PROVIDER:
        _add_provider(message, sender, store, now)
        return None
    near = [c for c in table.nearest(position(message.key), closer + 1) if c.peer_id != sender][:closer]
    if message.kind is Kind.FIND_NODE:
        return Message(Kind.FIND_NODE, message.key, closer=tuple(near))
    providers: Sequence[Contact] = store.find(message.key, now)
    if own is not None:
        providers = [own, *(known for known in providers if known.peer_id != own.peer_id)]
    if len(providers) > PROVIDERS_IN_ANSWER:
        providers = sample(providers, PROVIDERS_IN_ANSWER)
    return Message(Kind.GET_PROVIDERS, message.key, closer=tuple(near), providers=tuple(providers))


def _add_provider(message: Message, sender: bytes, store: ProviderStore, now: float) -> None:
    if message.withdraw:
        store.withdraw(message.key, sender)
        return
    for provider in message.providers:
        if provider.peer_id == sender and provider.addrs:  # only the provider itself may say so
            store.add(message.key, provider, now)
