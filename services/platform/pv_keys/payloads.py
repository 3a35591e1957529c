"""What is signed, and what it says: a message, a transfer, or an Ethereum transaction."""

import json
from dataclasses import dataclass
from typing import Any

from eth_account import Account
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from eth_utils.address import is_checksum_address, to_checksum_address

from nexus.platform.pv_keys.v1 import pv_keys_pb2 as pb
from nexus.type.v1.faults import InvalidRequest
from services.platform.pv_keys import curves
from services.platform.pv_keys.curves import Curve


@dataclass(frozen=True)
class Payload:
    kind: str
    """"message", "transfer" or "ethereum_transaction"."""
    bytes_to_sign: bytes
    """For an Ethereum transaction, the hash that is signed."""
    slot: str = ""
    destination: str = ""
    asset: str = ""
    amount: int = 0
    calls_contract: bool = False

    @property
    def is_message(self) -> bool:
        """Whether it says neither destination nor amount."""
        return self.kind == "message"


def read(request: pb.SignRequest) -> Payload:
    """Raises InvalidRequest for a transaction that Ethereum would not take."""
    if request.WhichOneof("payload") == "message":
        return Payload("message", request.message, slot=request.slot)
    if request.WhichOneof("payload") == "transfer":
        return _transfer(request.transfer, request.slot)
    return _ethereum(request.ethereum_transaction, request.slot)


def sign(request: pb.SignRequest, curve: Curve, private: bytes) -> bytes:
    """The signature; of an Ethereum transaction, the transaction with it, as it is sent."""
    if request.WhichOneof("payload") == "ethereum_transaction":
        return bytes(Account.sign_transaction(_fields(request.ethereum_transaction), private).raw_transaction)
    return curves.sign(curve, private, read(request).bytes_to_sign)


def _transfer(transfer: pb.Transfer, slot: str) -> Payload:
    statement = {
        "amount": str(int(transfer.amount)),
        "asset": transfer.asset,
        "destination": transfer.destination,
        "memo": transfer.memo,
        "slot": slot,
    }
    return Payload(
        "transfer",
        json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(),
        slot=slot,
        destination=transfer.destination,
        asset=transfer.asset,
        amount=int(transfer.amount),
    )


def _ethereum(transaction: pb.EthereumTransaction, slot: str) -> Payload:
    own_slot = f"evm:{transaction.chain_id}:{transaction.nonce}"
    if slot not in ("", own_slot):
        raise _invalid("slot", f"the slot of this transaction is {own_slot}")
    digits = transaction.to[2:]
    if digits not in (digits.lower(), digits.upper()) and not is_checksum_address(transaction.to):
        raise _invalid("ethereum_transaction.to", "its checksum (EIP-55) is wrong")
    return Payload(
        "ethereum_transaction",
        bytes(TypedTransaction.from_dict(_fields(transaction)).hash()),
        slot=own_slot,
        destination=to_checksum_address(transaction.to),
        asset=f"evm:{transaction.chain_id}",
        amount=int(transaction.value) + transaction.gas * transaction.max_fee_per_gas,
        calls_contract=bool(transaction.data),
    )


def _fields(transaction: pb.EthereumTransaction) -> dict[str, Any]:
    """As eth-account names them."""
    return {
        "type": 2,
        "chainId": transaction.chain_id,
        "nonce": transaction.nonce,
        "to": to_checksum_address(transaction.to),
        "value": int(transaction.value),
        "gas": transaction.gas,
        "maxFeePerGas": transaction.max_fee_per_gas,
        "maxPriorityFeePerGas": transaction.max_priority_fee_per_gas,
        "data": transaction.data,
        "accessList": [],
    }


def _invalid(field: str, why: str) -> InvalidRequest:
    return InvalidRequest(violations=[(field, why)], summary=f"{field}: {why}")
