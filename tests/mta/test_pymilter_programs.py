"""
Programs that others have written for pymilter, unchanged, behind a real Postfix: on the real
pymilter and on ours.

``tests/mta/install.sh`` puts them into a folder, which YATXMILTER_PYMILTER_PROGRAMS names.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from .bench import bench_for
from .control import ROOT, script
from .postfix import Postfix
from .processes import is_listening, wait_until
from .pymilter_sessions import REAL
from .smtp import SmtpClient

PROGRAMS = Path(os.environ.get("YATXMILTER_PYMILTER_PROGRAMS", "/var/cache/yatxmilter/pymilter"))
SITE, DEBS, SOURCE = PROGRAMS / "site", PROGRAMS / "debs", PROGRAMS / "pymilter"
OURS = (sys.executable, "-m", "yatxmilter", "pymilter")

MESSAGE = (
    b"From: Alice <alice@client.example>\r\nTo: bob@sink.example\r\nSubject: hello\r\n"
    b"Date: Sat, 28 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@client.example>\r\n\r\nhello\r\n"
)


def zipped() -> bytes:
    """
    Make a message with an archive that says that it is encrypted.
    """
    import io
    import zipfile
    from email.message import EmailMessage

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("secret", "x")
    data = bytearray(file.getvalue())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "alice@client.example", "bob", "zip"
    message.set_content("see the archive")
    message.add_attachment(bytes(data), maintype="application", subtype="zip", filename="a.zip")
    return message.as_bytes().replace(b"\n", b"\r\n")


class ProgramTests(SynchronousTestCase):
    """
    The same program on both.
    """

    def setUp(self) -> None:
        if subprocess.run([*REAL, "-c", "import milter"], capture_output=True).returncode:
            raise SkipTest("no pymilter for /usr/bin/python3; see tests/mta/install.sh")
        if not SOURCE.is_dir():
            raise SkipTest(f"no programs in {PROGRAMS}; see tests/mta/install.sh")
        self.bench = bench_for(Postfix)
        self.bench.milter.load([script()], {})
        self.addCleanup(self.bench.milter.take_log)
        self.port = self.bench.mta.addresses.example_port
        self.socket = f"inet:{self.port}@127.0.0.1"
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def outcome(self, command: list[str], path: list[Path], messages: list[bytes]) -> list[object]:
        """
        Run a program, send messages, and say what became of them.
        """
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": ":".join(map(str, path))},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        found: list[object] = []
        try:
            wait_until(lambda: is_listening(self.port), "the program")
            for message in messages:
                found.append(self.sent(message))
        finally:
            pid = self.folder / "pid"
            daemon = int(pid.read_text()) if pid.exists() else process.pid
            os.kill(daemon, signal.SIGTERM)
            process.communicate()
            wait_until(lambda: not is_listening(self.port), "the program to end")
            pid.unlink(missing_ok=True)
        return found

    def sent(self, message: bytes) -> object:
        """
        Send a message.
        """
        self.bench.mta.settle()
        self.bench.sink.clear()
        client = SmtpClient(self.bench.mta.ports["example"])
        client.ehlo()
        client.command("MAIL FROM:<alice@client.example>")
        client.command("RCPT TO:<bob@sink.example>")
        client.command("DATA")
        reply = client.content(message)
        client.quit()
        client.close()
        self.bench.mta.settle()
        text = re.sub(r"queued as \w+", "", " ".join(reply.lines))
        return reply.code, text, [_same(one.data) for one in self.bench.sink.deliveries]

    def compare(
        self,
        program: list[str],
        *,
        messages: list[bytes] | None = None,
        path: list[Path] | None = None,
        own_package: bool = False,
    ) -> list[object]:
        """
        Run a program on both.

        :param own_package: Use pymilter's own package on our module.
        :return: What became of the messages, on ours.
        """
        sent = messages or [MESSAGE]
        more = [SITE] if path is None else path
        real = self.outcome([*REAL, *program], more, sent)
        own = [self.own_package()] if own_package else []
        ours = self.outcome([*OURS, *program], [ROOT, *own, *more], sent)
        self.assertEqual(ours, real)
        return ours

    def own_package(self) -> Path:
        """
        Put pymilter's own package, without its C extension, into a folder.
        """
        target = self.folder / "own"
        shutil.copytree(SOURCE / "Milter", target / "Milter", dirs_exist_ok=True)
        return target

    def script(self, module: str, function: str = "main") -> str:
        """
        Write what pip installs as a command.
        """
        path = self.folder / "command"
        path.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        return str(path)

    def signer(self) -> tuple[Path, bytes]:
        """
        Make a key and a configuration of dkimpy-milter.

        :return: The configuration's file, and what the DNS says of the key.
        """
        key = self.folder / "dkim.key"
        subprocess.run(
            ["openssl", "genrsa", "-traditional", "-out", str(key), "2048"],
            check=True,
            capture_output=True,
        )
        public = subprocess.run(
            ["openssl", "rsa", "-in", str(key), "-pubout"], check=True, capture_output=True
        ).stdout
        record = b"v=DKIM1; k=rsa; p=" + b"".join(public.split(b"\n")[1:-2])
        config = self.folder / "dkimpy-milter.conf"
        config.write_text(
            f"Syslog no\nDomain client.example\nKeyFile {key}\nSelector test\nMode s\n"
            f"Socket {self.socket}\nPidFile {self.folder}/pid\nUserID root\n"
            "InternalHosts 127.0.0.1,192.0.2.25\nCanonicalization relaxed/simple\n"
        )
        return config, record

    def test_behind_a_footer(self) -> None:
        """
        dkimpy-milter's class, the last of a chain behind a native milter, signs the footer too.
        """
        from yatxmilter import Milter as Native
        from yatxmilter import MilterFactory
        from yatxmilter.pymilter import factory, install
        from yatxmilter.testing import InMemoryMTA

        class Footer(Native):
            def xxfi_body(self, bodyp: bytes) -> None:
                self.text = bodyp

            def xxfi_eom(self) -> None:
                self.smfi_replacebody(self.text + b"-- \r\na footer\r\n")

        config, record = self.signer()
        install()
        self.patch(sys, "path", [str(SITE), *sys.path])
        import dkim
        import dkimpy_milter

        settings = dkimpy_milter.config._processConfigFile(filename=str(config))
        dkimpy_milter.milterconfig = dkimpy_milter.get_keys(settings)
        for flavour in ("postfix", "sendmail"):
            chain = [MilterFactory(Footer), factory(dkimpy_milter.dkimMilter)]
            mta = InMemoryMTA(chain, merge="chain", flavour=flavour)
            signed = mta.send(MESSAGE, "<alice@client.example>").delivered.data
            mta.finish()
            self.assertIn(b"a footer", signed)
            self.assertTrue(dkim.verify(signed, dnsfunc=lambda name, timeout=5: record), flavour)

    def test_dkimpy_milter_signs_and_signature_verifies(self) -> None:
        """
        dkimpy-milter signs, and the signature verifies.
        """
        config, record = self.signer()
        outcome = self.compare([str(SITE / "bin" / "dkimpy-milter"), str(config)])
        self.assertIn(b"DKIM-Signature", str(outcome).encode())
        self.patch(sys, "path", [str(SITE), *sys.path])
        import dkim

        signed = self.bench.sink.deliveries[0].data
        self.assertTrue(dkim.verify(signed, dnsfunc=lambda name, timeout=5: record))

    def test_pyspf_milter_looks_at_client_and_adds_its_field(self) -> None:
        """
        pyspf-milter looks at the client, and adds its field.
        """
        config = self.folder / "spf.conf"
        config.write_text(
            f"debugLevel = 0\nSocket = {self.socket}\nPidFile = {self.folder}/pid\n"
            "UserID = root\nskip_addresses = 127.0.0.0/8\n"
        )
        self.compare([self.script("spf_engine.milter_spf"), str(config)])

    def test_vrfydmn_daemon_refuses_from_that_is_not_of_domains_it_knows(self) -> None:
        """
        vrfydmn, a daemon, refuses a From that is not of the domains it knows.
        """
        domains = self.folder / "domains"
        domains.write_text("client.example OK\n")
        outcome = self.compare(
            [
                *(str(DEBS / "usr/sbin/vrfydmn"), "--socket", self.socket, "--user", "root"),
                *("--group", "root", "--pid", f"{self.folder}/pid", "--file", str(domains)),
            ],
            messages=[MESSAGE, MESSAGE.replace(b"<alice@client.example>", b"<a@other.example>")],
        )
        self.assertEqual(len(outcome), 2)

    def test_no_ppap_milter(self) -> None:
        """
        no-ppap-milter refuses an encrypted archive, and nothing else.
        """
        command = self.script("no_ppap_milter.cli_no_ppap_milter")
        outcome = self.compare(
            [command, "--socket-name", self.socket], messages=[MESSAGE, zipped()]
        )
        self.assertNotEqual(str(outcome[0])[:4], str(outcome[1])[:4])

    def test_srsmilter_rewrites_sender_it_needs_parts_of_pymilters_own_package(self) -> None:
        """
        srsmilter rewrites the sender; it needs parts of pymilter's own package, on our module.
        """
        config = self.folder / "pysrs.cfg"
        config.write_text(
            "[srs]\nsecret=shhhh\nfwdomain=forward.example\n[srsmilter]\n"
            f"socketname={self.socket}\nmiltername=pysrsfilter\nmiltersrs=true\n"
            "reject_spoofed=false\n"
        )
        program = DEBS / "usr/share/doc/python3-srs/examples/srsmilter.py"
        text = program.read_text()
        copy = self.folder / "srsmilter.py"
        # Where it looks for its configuration is all that is changed.
        copy.write_text(text.replace("/etc/mail/pysrs.cfg", str(config)))
        self.compare([str(copy)], path=[DEBS / "usr/lib/python3/dist-packages"], own_package=True)

    def test_pymilters_own_sample_defangs(self) -> None:
        """
        pymilter's own sample defangs; it needs parts of pymilter's own package.
        """
        text = (SOURCE / "sample.py").read_text()
        text = re.sub(r"socketname = .*", f'socketname = "{self.socket}"', text)
        copy = self.folder / "sample.py"
        copy.write_text(text)
        shutil.copy(SOURCE / "mime.py", self.folder)
        self.compare([str(copy)], path=[], own_package=True)


def _same(data: bytes) -> bytes:
    # What is another one each time: stamps, times and the signatures over them.
    data = re.sub(rb"(?m)^Received:.*\r\n([ \t].*\r\n)*", b"", data)
    return re.sub(rb"\b(t|b|x)=[\w+/=\s]+", b"", data)


class SuiteTests(SynchronousTestCase):
    """
    pymilter's own test suite.
    """

    def run_suite(self, *, own_package: bool) -> str:
        """
        Run it, on our modules.
        """
        if not SOURCE.is_dir():
            raise SkipTest(f"no source of pymilter in {PROGRAMS}; see tests/mta/install.sh")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        target = Path(folder.name)
        for name in ("test", *(one.name for one in SOURCE.glob("*.py"))):
            copy = shutil.copytree if (SOURCE / name).is_dir() else shutil.copy
            copy(SOURCE / name, target / name)
        # What the released source has forgotten.
        (target / "template.py").write_text(
            "import Milter\n\nclass myMilter(Milter.Base):\n  pass\n"
        )
        if own_package:
            shutil.copytree(SOURCE / "Milter", target / "Milter")
        more = "" if own_package else f"M.__path__.append({str(SOURCE / 'Milter')!r})\n"
        program = (
            "import sys, unittest\nsys.path.insert(0, '.')\n"
            f"import yatxmilter.pymilter as p\nM = p.install()\n{more}"
            # One test looks names up in the DNS.
            "unittest.main(module=None, argv=['x', 'testmime', 'testsample',"
            " 'testutils.AddrCacheTestCase'])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=target,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        return done.stderr

    def test_suite_passes_with_pymilters_package_on_our_module(self) -> None:
        """
        It passes with pymilter's package on our module.
        """
        self.assertIn("OK", self.run_suite(own_package=True))

    def test_suite_passes_with_our_package(self) -> None:
        """
        It passes with our package, and those parts of pymilter's that are not ours to have.
        """
        self.assertIn("OK", self.run_suite(own_package=False))
