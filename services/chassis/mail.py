"""Mail: to an SMTP server where one is configured, else into the outbox folder that `nexus mail` shows."""

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
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
        self._outbox = settings.home / "outbox"
        self._smtp = urlsplit(settings.smtp_url.get_secret_value()) if settings.smtp_url else None

    async def send(self, to: str, subject: str, body: str, attachments: Sequence[Attachment] = ()) -> None:
        """Returns once the server has accepted the mail. Raises DependencyUnavailable when it does not."""
        message = EmailMessage()
        message["From"] = self._sender
        message["To"] = to
        message["Subject"] = subject
        message["Date"] = formatdate()
        message["Message-ID"] = make_msgid(domain="nexus.local")
        message.set_content(body)
        for file in attachments:
            maintype, _, subtype = file.content_type.partition("/")
            message.add_attachment(file.data, maintype=maintype, subtype=subtype, filename=file.name)
        if self._smtp is None:
            await asyncio.to_thread(self._put, message)
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

    def _put(self, message: EmailMessage) -> None:
        self._outbox.mkdir(parents=True, exist_ok=True)
        path = self._outbox / f"{new_id()}.eml"
        draft: Path = path.with_suffix(".draft")
        draft.write_bytes(bytes(message))
        draft.rename(path)
