"""A mail is at the server, or in the outbox as a whole, when `send` returns."""

import asyncio
import email
import email.policy
import threading
from collections.abc import AsyncIterator
from email.message import EmailMessage
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session
from pydantic import SecretStr

from nexus.type.v1.faults import DependencyUnavailable
from services.chassis.config import Settings
from services.chassis.mail import Attachment, Mailer

BODY = "Grüße!\n\nYour code is:\n\n    abc-123\n"


class Mailbox:
    """What aiosmtpd delivers to."""

    def __init__(self) -> None:
        self.port = 0
        self.envelopes: list[Envelope] = []
        self.answer = "250 OK"

    def mails(self) -> list[EmailMessage]:
        return [parsed(content) for envelope in self.envelopes if isinstance(content := envelope.content, bytes)]

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if self.answer.startswith("250"):
            self.envelopes.append(envelope)
        return self.answer


@pytest.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    mailbox = Mailbox()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(mailbox, enable_SMTPUTF8=True), "127.0.0.1", 0)
    mailbox.port = server.sockets[0].getsockname()[1]
    yield mailbox
    server.close()
    await server.wait_closed()


def to_server(port: int) -> Mailer:
    return Mailer(Settings(smtp_url=SecretStr(f"smtp://127.0.0.1:{port}")))


def parsed(content: bytes) -> EmailMessage:
    return email.message_from_bytes(content, policy=email.policy.default)


def check(message: EmailMessage) -> None:
    assert message["From"] == "Nexus COS <no-reply@nexus.local>"
    assert message["To"] == "ann@example.com"
    assert message["Subject"] == "Prüfe deine Adresse"
    assert message["Date"]
    assert message["Message-ID"]
    assert message.get_content_type() == "text/plain"
    assert message.get_content().replace("\r\n", "\n") == BODY


async def test_a_mail_goes_to_the_server(mailbox: Mailbox) -> None:
    await to_server(mailbox.port).send("ann@example.com", "Prüfe deine Adresse", BODY)
    (envelope,) = mailbox.envelopes
    assert envelope.rcpt_tos == ["ann@example.com"]
    assert envelope.mail_from == "no-reply@nexus.local"
    assert isinstance(envelope.content, bytes)
    check(parsed(envelope.content))


async def test_without_a_server_a_mail_goes_to_the_outbox(tmp_path: Path) -> None:
    mailer = Mailer(Settings(home=tmp_path))
    await mailer.send("ann@example.com", "Prüfe deine Adresse", BODY)
    await mailer.send("ann@example.com", "Another", BODY)
    first, second = sorted((tmp_path / "outbox").iterdir())
    check(parsed(first.read_bytes()))
    assert parsed(second.read_bytes())["Subject"] == "Another"


async def test_a_mail_that_is_sent_again_is_the_same_mail(mailbox: Mailbox, tmp_path: Path) -> None:
    for mailer in (Mailer(Settings(home=tmp_path)), to_server(mailbox.port)):
        for _ in range(2):
            await mailer.send("ann@example.com", "Once", BODY, mail_id="invoice-1")
        await mailer.send("ann@example.com", "Once", BODY)
    assert len(list((tmp_path / "outbox").iterdir())) == 2
    sent = [mail["Message-ID"] for mail in mailbox.mails()]
    assert sent[:2] == ["<invoice-1@nexus.local>"] * 2
    assert sent[2] not in sent[:2]


async def test_files_come_with_a_mail(tmp_path: Path) -> None:
    files = [Attachment("INV-1.pdf", "application/pdf", b"%PDF\x00\xff"), Attachment("ü.txt", "text/plain", b"hi\n")]
    await Mailer(Settings(home=tmp_path)).send("ann@example.com", "Files", BODY, files)
    [path] = (tmp_path / "outbox").iterdir()
    mail = parsed(path.read_bytes())
    attached = [(part.get_filename(), part.get_content_type()) for part in mail.iter_attachments()]
    assert attached == [("INV-1.pdf", "application/pdf"), ("ü.txt", "text/plain")]
    assert next(mail.iter_attachments()).get_content() == b"%PDF\x00\xff"


async def test_nobody_ever_sees_half_a_mail_in_the_outbox(tmp_path: Path) -> None:
    outbox = tmp_path / "outbox"
    outbox.mkdir()
    sent = threading.Event()
    torn: list[str] = []

    def look() -> int:
        seen: set[Path] = set()
        while not sent.is_set():
            for path in outbox.glob("*.eml"):
                if not path.read_bytes().rstrip().endswith(b"the end"):
                    torn.append(path.name)
                seen.add(path)
        return len(seen)

    mailer = Mailer(Settings(home=tmp_path))
    looking = asyncio.create_task(asyncio.to_thread(look))
    body = "x" * 70 + "\n"
    await asyncio.gather(*(mailer.send("ann@example.com", "Long", body * 5_000 + "the end") for _ in range(40)))
    sent.set()
    await looking
    assert torn == []
    assert len(list(outbox.glob("*.eml"))) == 40
    assert len(list(outbox.iterdir())) == 40, "drafts were left behind"


async def test_a_server_that_is_away_is_an_unavailable_dependency() -> None:
    with pytest.raises(DependencyUnavailable) as raised:
        await to_server(1).send("ann@example.com", "Subject", BODY)
    assert raised.value.metadata == {"dependency": "mail server"}
    assert raised.value.retry_after == 5


async def test_a_server_that_refuses_for_now_is_an_unavailable_dependency(mailbox: Mailbox) -> None:
    mailbox.answer = "451 try later"
    with pytest.raises(DependencyUnavailable):
        await to_server(mailbox.port).send("ann@example.com", "Subject", BODY)


@pytest.mark.parametrize("to", ["ann@example.com\nBcc: eve@example.com", "ann@example.com\r\n\r\nInjected"])
async def test_an_address_cannot_add_headers(mailbox: Mailbox, to: str) -> None:
    with pytest.raises(ValueError, match=r"newline|linefeed"):
        await to_server(mailbox.port).send(to, "Subject", BODY)
    assert mailbox.envelopes == []
