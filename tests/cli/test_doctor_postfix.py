"""
Tests of how ``yatxmilter doctor`` reads main.cf and master.cf.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.cli.doctoring import MASTER, DoctorCase
from tests.helpers import table_of
from yatxmilter._cli import doctor
from yatxmilter._cli.doctor_findings import ConfigurationError, Misspelt
from yatxmilter._cli.doctor_postfix import (
    Entry,
    expand,
    read_entry,
    read_main,
    read_master,
    read_seconds,
    references,
    split_list,
)
from yatxmilter._cli.doctor_postfix_reading import DEFAULTS, find_postconf

SETTINGS = {
    "compatibility_level": "3.6",
    "full": "text",
    "empty": "",
    "nested": "<$full>",
    "loop": "$loop",
}

#: What a value is once it is expanded; the same by postconf.
EXPANDED = {
    "plain": "plain",
    "$full ${full} $(full)": "text text text",
    "$nested": "<text>",
    "a$$b": "a$b",
    "${full?yes}${empty?yes}${nosuch?yes}": "yes",
    "${full:no}${empty:no}${nosuch:no}": "nono",
    "${full?{yes}:{no}} ${empty?{yes}:{no}}": "yes no",
    "${full?{$nested}}": "<text>",
    "${{$full} == {text} ? {same} : {other}}": "same",
    "${{$full} != {text} ? {other} : {same}}": "same",
    "${{$full} == {text} ? {same}}${{$full} == {x} ? {same}}": "same",
    "${{2} < {10} ? {number} : {text}}": "number",
    "${{2} <= {2} ? {a} : {b}}${{2} >= {2} ? {a} : {b}}${{3} > {2} ? {a} : {b}}": "aaa",
    "${{$compatibility_level} <level {3.10} ? {older} : {newer}}": "older",
    "${{$compatibility_level} <level {1} ? {older} : {newer}}": "newer",
    "${{x} < {y} ? {less} : {more}}": "less",
}


class SyntaxTests(SynchronousTestCase):
    """
    The syntax of the files.
    """

    def test_indented_lines_continue_others_and_comments_are_left_out(self) -> None:
        """
        Lines that begin with white space continue others, and comments are left out.
        """
        text = "# c\n a = 1\nb = x,\n  # c\n\n   y\nc=\nb2 = = 2\na = 3\n"
        self.assertEqual(read_main(text), {"a": "3", "b": "x, y", "c": "", "b2": "= 2"})

    def test_main_is_empty(self) -> None:
        """
        A file with nothing in it has no settings.
        """
        self.assertEqual(read_main("# nothing\n"), {})

    def test_line_without_equals_sign_or_name_cannot_be_read(self) -> None:
        """
        A line without "=", or without a name, cannot be read.
        """
        for text in ("nonsense\n", " = x\n"):
            self.assertRaises(ConfigurationError, read_main, text)

    def test_service_has_its_fields_and_what_o_sets_in_any_of_spellings(self) -> None:
        """
        A service has its fields and what -o sets, in any of the spellings.
        """
        [smtpd, cleanup] = read_master(
            "smtp inet n - y - - smtpd -v\n  -o a=1,2 -ob=3\n"
            "  -o { c = 4 {x} 5 } -o {d=6}\ncleanup unix n n - - 0 cleanup\n"
        )
        self.assertEqual((smtpd.label, smtpd.command, smtpd.chroot), ("smtp/inet", "smtpd", "y"))
        self.assertEqual(smtpd.overrides, {"a": "1,2", "b": "3", "c": "4 {x} 5", "d": "6"})
        self.assertEqual((smtpd.privileged, cleanup.privileged), (False, True))
        self.assertEqual(smtpd.stray + cleanup.stray, [])

    def test_what_is_cut_off_by_a_blank_is_kept_apart(self) -> None:
        """
        What is cut off by a blank is kept apart: no setting has it.
        """
        [one] = read_master("smtp inet n - y - - smtpd -o a=1, 2 -o b = 3 -o")
        self.assertEqual(one.overrides, {"a": "1,"})
        self.assertEqual(one.stray, ["2", "b", "=", "3", ""])

    def test_service_with_fewer_than_eight_fields_cannot_be_read(self) -> None:
        """
        A service with fewer than eight fields cannot be read.
        """
        self.assertRaises(ConfigurationError, read_master, "smtp inet n -\n")

    def test_brace_that_is_not_closed_lasts_to_end_of_line(self) -> None:
        """
        A brace that is not closed lasts to the end of the line.
        """
        [one] = read_master("smtp inet n - y - - smtpd -o {a=1 2")
        self.assertEqual(one.overrides, {"a": "1 2"})

    def test_references_are_replaced_by_values(self) -> None:
        """
        References are replaced by values.
        """
        found = table_of(lambda text: expand(text, SETTINGS.get), EXPANDED)
        self.assertEqual(found, EXPANDED)

    def test_what_is_not_a_reference_stays(self) -> None:
        """
        What is not a reference stays, and a comparison that cannot be read is nothing.
        """
        table = {"a $ b": "a $ b", "$": "$", "${{a} ~ {b} ? {c}}": "", "${{a} = {b} ? {x}}": ""}
        self.assertEqual(table_of(lambda text: expand(text, SETTINGS.get), table), table)

    def test_value_that_refers_to_itself_is_error_and_not_loop(self) -> None:
        """
        A value that refers to itself is an error and not a loop.
        """
        self.assertRaises(ConfigurationError, expand, "$loop", SETTINGS.get)

    def test_expand_as_postconf(self) -> None:
        """
        Postfix's own program expands each value in the same way.
        """
        postconf = find_postconf()
        if postconf is None:
            raise SkipTest("postconf is not installed")
        folder = Path(self.mktemp())
        folder.mkdir()
        values = [*EXPANDED]
        lines = [f"{name} = {value}" for name, value in SETTINGS.items() if name != "loop"]
        lines += [f"test{place} = {value}" for place, value in enumerate(values)]
        # postconf prints only what something refers to.
        lines.append("mynetworks = " + " ".join(f"$test{place}" for place in range(len(values))))
        (folder / "main.cf").write_text("\n".join(lines) + "\n")
        (folder / "master.cf").write_text("")
        names = [f"test{place}" for place in range(len(values))]
        command = [postconf, "-c", folder, "-x", "-h", *names]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        self.assertEqual(dict(zip(values, run.stdout.splitlines(), strict=True)), EXPANDED)

    def test_names_in_a_value_are_found_whatever_stands_around_them(self) -> None:
        """
        The names in a value are found, whatever stands around them.
        """
        found = references("$a ${b} $(c) ${d?x} ${{$e} == {x} ? {$f}}")
        self.assertEqual(found, {"a", "b", "c", "d", "e", "f"})

    def test_times_have_units_and_are_a_second_at_least(self) -> None:
        """
        Times have units, and are a second at least.
        """
        table = {
            "30": 30,
            "30s": 30,
            "5m": 300,
            "1 h": 3600,
            "1D": 86400,
            "1w": 604800,
            "0": Misspelt,
            "1x": Misspelt,
            "": Misspelt,
            "-1": Misspelt,
            "10000000000": Misspelt,
        }
        self.assertEqual(table_of(lambda text: read_seconds(text, "x"), table), table)

    def test_list_is_split_at_commas_and_blanks_outside_braces(self) -> None:
        """
        A list is split at commas and blanks outside braces.
        """
        table = {
            "": [],
            " , ": [],
            "inet:a:1, unix:b": ["inet:a:1", "unix:b"],
            "{ inet:a:1, x=y } , unix:b": ["{ inet:a:1, x=y }", "unix:b"],
            "inline:{ {a = b}, c=d } x": ["inline:{ {a = b}, c=d }", "x"],
            "{ inet:a:1": Misspelt,
            "inet:a:1 }": Misspelt,
            "{inet:a:1}x": Misspelt,
            "{a}{b}": Misspelt,
        }
        self.assertEqual(table_of(split_list, table), table)

    def test_milter_has_an_address_and_in_braces_settings_of_its_own(self) -> None:
        """
        A milter has an address and, in braces, settings of its own.
        """
        table = {
            "unix:a": Entry("unix:a", {}),
            "{ unix:a }": Entry("unix:a", {}),
            "{ unix:a, connect_timeout=1s default_action=accept }": Entry(
                "unix:a", {"connect_timeout": "1s", "default_action": "accept"}
            ),
            "{ unix:a, {protocol = 6} }": Entry("unix:a", {"protocol": "6"}),
            "{ }": Misspelt,
            "{ unix:a, default_acton=accept }": Misspelt,
            "{ unix:a, default_action = accept }": Misspelt,
        }
        self.assertEqual(table_of(read_entry, table), table)

    def test_defaults_are_those_that_postconf_has_where_it_is_postfix_3_7(self) -> None:
        """
        The defaults are those that postconf has, where it is Postfix 3.7.
        """
        postconf = find_postconf()
        if postconf is None:
            raise SkipTest("postconf is not installed")
        run = subprocess.run([postconf, "-d"], capture_output=True, text=True, check=True)
        theirs = read_main(run.stdout)
        if not theirs["mail_version"].startswith("3.7."):
            raise SkipTest("this is not Postfix 3.7")
        known = {name: theirs.get(name) for name in DEFAULTS}
        # Debian's own, or of the build.
        for name in ("inet_protocols", "compatibility_level", "queue_directory", "mail_owner"):
            known[name] = DEFAULTS[name]
        self.assertEqual(known, DEFAULTS)


class ReadingTests(DoctorCase):
    """
    What a configuration comes to. Nobody listens at any of the addresses.
    """

    def milters(self, main: str, master: str = MASTER) -> dict[str, list[str]]:
        """
        Give the places of each milter.
        """
        found = self.postfix(main, master=master).data["milters"]
        return {each["milter"]: each["places"] for each in found}

    def test_milter_that_stands_in_several_places_is_told_of_once(self) -> None:
        """
        A milter is told of once, with all places in which it stands with the same settings.
        """
        self.assertEqual(
            self.milters(
                "smtpd_milters = unix:a, unix:b\nnon_smtpd_milters = unix:a\n",
                MASTER + "587 inet n - n - - smtpd -o smtpd_milters=unix:b\n",
            ),
            {
                "unix:a": ["smtpd_milters of smtp/inet", "non_smtpd_milters of cleanup/unix"],
                "unix:b": ["smtpd_milters of smtp/inet", "smtpd_milters of 587/inet"],
            },
        )

    def test_references_are_followed_with_what_o_sets_for_the_service(self) -> None:
        """
        References are followed, with what -o sets for the service.
        """
        self.assertEqual(
            self.milters(
                "one = unix:a\nsmtpd_milters = $one\n",
                "smtp inet n - n - - smtpd -o one=unix:b\n",
            ),
            {"unix:b": ["smtpd_milters of smtp/inet"]},
        )

    def test_services_that_ask_no_milters_are_left_alone(self) -> None:
        """
        Services that ask no milters are left alone.
        """
        master = "qmgr unix n - n 300 1 qmgr\nsmtp unix - - n - - smtp\n"
        self.assertEqual(self.milters("smtpd_milters = unix:a\n", master), {})

    def test_broken_in_two_places(self) -> None:
        """
        The same mistake in two services is told once.
        """
        run = self.postfix("smtpd_milters = m.sock\n", master=MASTER + "587 inet n - n - - smtpd\n")
        self.assertEqual(run.status, 2)
        places = ["smtpd_milters of smtp/inet", "smtpd_milters of 587/inet"]
        self.assertEqual(run.data["milters"][0]["places"], places)
        self.assertEqual(run.checks, {"error address"})

    def test_brace_not_closed(self) -> None:
        """
        A list that cannot be split is told as a whole.
        """
        run = self.postfix("smtpd_milters = { unix:a, default_action=accept\n")
        self.assertEqual(run.checks, {"error list-syntax"})

    def test_settings_of_a_milter(self) -> None:
        """
        What is wrong in the braces of a milter is told with what Postfix would do.
        """
        table = {
            "default_acton=accept": "is not a setting of a milter",
            "default_action=drop": "the default action 'drop' is unknown",
            "default_action=": "the default action '' is unknown",
            "command_timeout=x": "command_timeout is 'x', which is not a time",
            "protocol=7": "milter_protocol is '7', which Postfix does not know",
            "protocol=no_header_reply": "which Postfix does not know",
            "protocol=nosuch": "which Postfix does not know",
        }
        for setting, words in table.items():
            run = self.postfix(f"smtpd_milters = {{ unix:a, {setting} }}\n")
            self.assertEqual(run.checks, {"error address"}, setting)
            self.assertIn(words, run["address"]["what"])

    def test_version_with_a_word_of_postfixs_is_understood(self) -> None:
        """
        A version with a word of Postfix's is understood.
        """
        run = self.postfix("smtpd_milters = unix:a\nmilter_protocol = 6 no_header_reply\n")
        self.assertEqual(run.checks, {"error socket-missing", "note local-mail"})
        run = self.postfix("smtpd_milters = unix:a\nmilter_protocol = 6 nosuch\n")
        self.assertEqual(run.checks, {"error address"})

    def test_shutdown_is_unknown_to_postfix_3_7_and_known_to_newer_ones(self) -> None:
        """
        "shutdown" is unknown to Postfix 3.7, and known to newer ones.
        """
        main = "smtpd_milters = unix:a\nmilter_default_action = shutdown\nmail_version = "
        self.assertEqual(self.postfix(main + "3.7.11\n").checks, {"error address"})
        self.assertIn("error socket-missing", self.postfix(main + "3.11.0\n").checks)

    def test_time_out_that_cannot_be_read_is_told_once(self) -> None:
        """
        A time-out that cannot be read is told once, whatever it is for.
        """
        run = self.postfix(
            "smtpd_milters = unix:a, unix:b\nmilter_command_timeout = 5x\nipc_timeout = x\n"
        )
        told = [each["what"][:20] for each in run.findings if each["check"] == "timeout-invalid"]
        self.assertEqual(told, ["ipc_timeout is 'x', ", "milter_command_timeo"])

    def test_parameter_about_milters_that_does_not_exist_is_told(self) -> None:
        """
        A parameter about milters that does not exist is told, with what was meant.
        """
        run = self.postfix("smtpd_milter = unix:a\n")
        self.assertEqual(run["parameter-unknown"]["todo"], "write smtpd_milters")
        run = self.postfix("zzz_milter_zzz = unix:a\n")
        self.assertIn("take it out", run["parameter-unknown"]["todo"])
        run = self.postfix("my_milter = unix:a\nsmtpd_milters = $my_milter\n")
        self.assertNotIn("warning parameter-unknown", run.checks)
        run = self.postfix("", master=MASTER.replace("smtpd", "smtpd -o smtpd_milterz=unix:a"))
        self.assertEqual(run["parameter-unknown"]["todo"], "write smtpd_milters")

    def test_blank_in_master(self) -> None:
        """
        A list with a blank in it, in master.cf and without braces, is told.
        """
        run = self.postfix("", master=MASTER.replace("smtpd", "smtpd -o smtpd_milters=unix:a, b"))
        self.assertEqual(run["master-cf-argument"]["level"], "error")
        self.assertIn("'b'", run["master-cf-argument"]["what"])

    def test_postfix_that_asks_no_milters_gets_a_warning(self) -> None:
        """
        A Postfix that asks no milters gets a warning.
        """
        run = self.postfix("")
        self.assertEqual((run.status, run.checks), (1, {"warning no-milters"}))

    def test_no_milters_in_receive_override_options_is_told(self) -> None:
        """
        no_milters in receive_override_options is told, where there would be milters.
        """
        off = "\n588 inet n - n - - smtpd -o receive_override_options=no_milters\n"
        run = self.postfix("smtpd_milters = unix:a\n", master=MASTER + off)
        self.assertIn("note milters-off", run.checks)
        self.assertNotIn("note milters-off", self.postfix("", master=MASTER + off).checks)

    def test_milters_for_one_kind_of_mail_only_are_told(self) -> None:
        """
        Milters for one kind of mail only, or other ones for each, are told.
        """
        table = {
            "smtpd_milters = unix:a": "non_smtpd_milters is empty",
            "non_smtpd_milters = unix:a": "smtpd_milters is empty",
            "smtpd_milters = unix:a\nnon_smtpd_milters = unix:a unix:b": "has unix:b",
        }
        for main, words in table.items():
            self.assertIn(words, self.postfix(main + "\n")["local-mail"]["what"])
        same = "smtpd_milters = unix:a\nnon_smtpd_milters = unix:a\n"
        self.assertNotIn("note local-mail", self.postfix(same).checks)

    def test_milters_that_are_in_a_text_table_or_inline_are_looked_at(self) -> None:
        """
        Milters that are in a text table, or inline, are looked at; of others that is said.
        """
        table = self.write("map", "# c\n192.0.2.0/24 DISABLE\n::/0  unix:c\nodd\n")
        main = (
            f"smtpd_milter_maps = cidr:{table} inline:{{ 192.0.2.1=unix:d }}"
            " inline:{ { 192.0.2.2 = unix:e } } hash:/x cidr:/nosuch/file\n"
        )
        run = self.postfix(main)
        self.assertEqual(
            {each["milter"]: each["places"] for each in run.data["milters"]},
            {
                "unix:c": ["smtpd_milters of smtp/inet for ::/0 (milter maps)"],
                "unix:d": ["smtpd_milters of smtp/inet for 192.0.2.1 (milter maps)"],
                "unix:e": ["smtpd_milters of smtp/inet for 192.0.2.2 (milter maps)"],
            },
        )
        unread = [each["todo"] for each in run.findings if each["check"] == "maps-unread"]
        self.assertEqual([each.split()[-1] for each in unread], ["hash:/x", "cidr:/nosuch/file"])

    def test_folder_that_has_no_readable_main_cf_is_an_error(self) -> None:
        """
        A folder without main.cf, and one that cannot be read as one, is an error.
        """
        nowhere = self.folder / "nowhere"
        run = self.diagnose("--postfix", str(nowhere))
        self.assertEqual((run.status, run.checks), (2, {"error configuration"}))
        self.assertIn(f"cannot read {nowhere}/main.cf", run["configuration"]["what"])
        self.assertIn("has 1 fields", self.postfix("", master="x\n")["configuration"]["what"])
        wrong = self.postfix("smtpd_milters = $smtpd_milters\n")
        self.assertIn("refers to itself", wrong["configuration"]["what"])


class PostconfTests(DoctorCase):
    """
    With a program for postconf.
    """

    def use(self, script: str) -> None:
        """
        Have a shell script for postconf.
        """
        path = self.write("postconf", f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        self.patch(doctor, "find_postconf", lambda: str(path))

    def test_what_it_prints_counts_for_settings_and_services(self) -> None:
        """
        What it prints counts, for settings and services.
        """
        self.use(
            'case "$*" in *-M) echo "x inet n - n - - smtpd";;'
            " *) echo smtpd_milters = unix:theirs; echo mail_version = 9.9;; esac"
        )
        run = self.postfix("smtpd_milters = unix:ours\n")
        self.assertEqual(run.data["version"], "9.9")
        self.assertEqual(run.data["milters"][0]["milter"], "unix:theirs")
        self.assertEqual(run.data["milters"][0]["places"], ["smtpd_milters of x/inet"])

    def test_when_it_fails_or_cannot_be_run_the_words_are_passed_on(self) -> None:
        """
        When it fails, or cannot be run, the words are passed on.
        """
        self.use("echo first; echo fatal: no such folder >&2; exit 1")
        self.assertIn("fatal: no such folder", self.postfix("")["configuration"]["what"])
        self.patch(doctor, "find_postconf", lambda: "/nosuch/postconf")
        self.assertIn("cannot run /nosuch/postconf", self.postfix("")["configuration"]["what"])

    def test_postconf_is_looked_for_in_the_path_and_where_root_has_programs(self) -> None:
        """
        It is looked for in PATH and where programs for root are.
        """
        path = self.write("postconf", "")
        path.chmod(0o755)
        self.assertEqual(find_postconf({"PATH": str(self.folder)}), str(path))
        self.assertEqual(find_postconf({}), shutil.which("postconf", path="/usr/sbin:/sbin"))
