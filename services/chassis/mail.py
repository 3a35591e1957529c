"""Mail: to an SMTP server where one is configured, else into the outbox folder that `nexus mail` shows."""

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, parseaddr
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiosmtplib

from nexus.type.v1.faults import DependencyUnavailable
from services.chassis.config import Settings
from services.chassis.ids import new_id

_TIMEOUT = 5.0


@dataclass(frozen=True)
class Attachment:
    """A file that comes with a mail."""

    name: str
    content_type: str
    """"application/pdf"."""
    data: bytes


class Mailer:
    """Sends plain-text mails, with files."""

    def __init__(self, settings: Settings) -> None:
        self._sender = settings.mail_sender
        self._domain = parseaddr(settings.mail_sender)[1].rpartition("@")[2]
        self._outbox = settings.home / "outbox"
        self._smtp = urlsplit(settings.smtp_url.get_secret_value()) if settings.smtp_url else None

    async def send(
        self, to: str, subject: str, body: str, attachments: Sequence[Attachment] = (), *, mail_id: str = ""
    ) -> None:
        """Returns once the server has accepted the mail. Raises DependencyUnavailable when it does not.

        Who dies after the server's yes and before a commit sends it again: with the same `mail_id` (letters, digits,
        dots and hyphens; a new one if empty) it is the same mail by its Message-ID (RFC 5322, 3.6.4), and mailboxes
        and the outbox have it once.
        """
        mail_id = mail_id or new_id()
        message = EmailMessage()
        message["From"] = self._sender
        message["To"] = to
        message["Subject"] = subject
        message["Date"] = formatdate()
        message["Message-ID"] = f"<{mail_id}@{self._domain}>"
        message.set_content(body)
        for file in attachments:
            maintype, _, subtype = file.content_type.partition("/")
            message.add_attachment(file.data, maintype=maintype, subtype=subtype, filename=file.name)
        if self._smtp is None:
            await asyncio.to_thread(self._put, mail_id, message)
            return
        try:
            await aiosmtplib.send(
                message,
                hostname=self._smtp.hostname,
                port=self._smtp.port,
                username=unquote(self._smtp.username) if self._smtp.username else None,
                password=unquote(self._smtp.password) if self._smtp.password else None,
                use_tls=self._smtp.scheme == "smtps",
                tls_context=ssl.create_default_context(),
                timeout=_TIMEOUT,
            )
        except (aiosmtplib.SMTPException, OSError) as error:
            raise DependencyUnavailable(dependency="mail server", retry_after=5) from error

    def _put(self, mail_id: str, message: EmailMessage) -> None:
        self._outbox.mkdir(parents=True, exist_ok=True)
        path = self._outbox / f"{mail_id}.eml"
        draft: Path = self._outbox / f"{new_id()}.draft"
        draft.write_bytes(bytes(message))
        draft.rename(path)
