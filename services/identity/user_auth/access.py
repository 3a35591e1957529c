"""Who may do what in a tenant: roles, who has them, and who may decide about it."""

from collections.abc import Collection, Iterable, Sequence

from nexus.identity.user_auth.v1.faults import LastOwner, RoleBuiltIn, RoleInUse, RoleNotFound, UserChanged
from services.chassis.context import OPERATOR_USER, User
from services.chassis.database import Database
from services.chassis.table import Row
from services.identity.user_auth.roles import (
    BUILT_IN,
    EVERYTHING,
    OWNER,
    Rule,
    permissions_of,
    require_known,
    require_within,
)
from services.identity.user_auth.store import Store


class Access:
    """Rules about roles, over the rows of the call's tenant."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._store = store

    async def permissions(self, user: Row) -> list[str]:
        """What a user may do."""
        return permissions_of(await self._rules(user["roles"]))

    async def require_over(self, actor: User, user: Row) -> None:
        """Raises RoleBeyondOwn unless the actor may do all that the user may: else an assistant could take over
        the account of an owner."""
        if user["user_id"] != actor.user_id:
            own = await self._own(actor)
            for rule in await self._rules(user["roles"]):
                require_within(Rule(rule.name, rule.allow), own)

    async def require_other_owner(self, user: Row) -> None:
        """Raises LastOwner if the tenant's last active owner would go. Holds in a transaction that locked the
        owners before it read the user."""
        is_owner = OWNER in user["roles"] and user["state"] == "active"
        if is_owner and not await self._store.has_other_owner(user["user_id"]):
            raise LastOwner()

    async def set_role(self, actor: User, rule: Rule, description: str, etag: str) -> Row:
        if rule.name in BUILT_IN:
            raise RoleBuiltIn(role=rule.name)
        require_known(rule.allow | rule.deny)
        own = await self._own(actor)
        require_within(rule, own)
        async with self._database.transaction():
            present = await self._store.roles.get(rule.name, lock=True)
            if present is not None:
                require_within(_rule(present), own)
                if etag and etag != str(present["version"]):
                    raise UserChanged()
            return await self._store.roles.put(
                name=rule.name, description=description, allow=sorted(rule.allow), deny=sorted(rule.deny)
            )

    async def delete_role(self, actor: User, name: str) -> None:
        if name in BUILT_IN:
            raise RoleBuiltIn(role=name)
        async with self._database.transaction():
            present = await self._store.roles.require(name, lock=True)
            require_within(_rule(present), await self._own(actor))
            users = await self._store.count_with(name)
            if users:
                raise RoleInUse(role=name, users=users)
            await self._store.roles.delete(name=name)

    async def assign(self, actor: User, user: Row, names: Sequence[str]) -> Row:
        """Inside a transaction that has locked the user."""
        await self.require_may_give(actor, names)
        return await self._store.users.change(user["user_id"], roles=sorted({*user["roles"], *names}))

    async def require_may_give(self, actor: User, names: Sequence[str]) -> None:
        """Raises RoleNotFound, RoleBeyondOwn. The roles stay until the transaction ends."""
        rules, own = {rule.name: rule for rule in await self._rules(names, lock="FOR SHARE")}, await self._own(actor)
        for name in names:
            if name not in rules:
                raise RoleNotFound(role=name)
            require_within(rules[name], own)

    async def remove(self, actor: User, user: Row, names: Sequence[str]) -> Row:
        """Inside a transaction that has locked the owners and the user."""
        leaving, own = set(names) & set(user["roles"]), await self._own(actor)
        for rule in await self._rules(leaving):
            require_within(rule, own)
        if OWNER in leaving:
            await self.require_other_owner(user)
        return await self._store.users.change(user["user_id"], roles=sorted(set(user["roles"]) - leaving))

    async def _own(self, actor: User) -> Collection[str]:
        """What an actor may decide on: what their roles say, whatever modules are on now. An API key or a client
        decides on no more than it was given; the operator on everything, whatever modules are on."""
        if actor.user_id == OPERATOR_USER:
            return {EVERYTHING}
        user = None if actor.scoped else await self._store.users.get(actor.user_id)
        return actor.permissions if user is None else await self.permissions(user)

    async def _rules(self, names: Iterable[str], *, lock: str = "") -> list[Rule]:
        """Those of the roles that there are."""
        own = sorted({name for name in names if name not in BUILT_IN})
        built_in = [BUILT_IN[name] for name in names if name in BUILT_IN]
        rows = await self._store.roles.select(f"name = ANY($1) ORDER BY name {lock}", own) if own else []
        return built_in + [_rule(row) for row in rows]


def _rule(row: Row) -> Rule:
    return Rule(row["name"], frozenset(row["allow"]), frozenset(row["deny"]))
