"""
Tests of how ``yatxmilter doctor`` reads a sendmail.cf. Nobody listens at any of the addresses.
"""

from __future__ import annotations

from tests.cli.doctoring import DoctorCase

HEAD = """\
V10/Berkeley
# a comment
DZ8.17.1.9/Debian
O RunAsUser=root
O InputMailFilters=first
O Milter.macros.connect=j, _,
\t{daemon_name}

"""


class ReadingTests(DoctorCase):
    """
    What a configuration comes to.
    """

    def of(self, equates: str) -> dict[str, str]:
        """
        Give what is said of the only thing that is wrong with a filter.
        """
        run = self.sendmail(f"{HEAD}Xfirst, {equates}\n")
        self.assertEqual(run.checks, {"error address"}, run)
        [finding] = [each for each in run.findings if each["check"] == "address"]
        return finding

    def test_filters_have_a_name_and_an_address(self) -> None:
        """
        Filters have a name and an address, and are told with the list that has them.
        """
        daemons = (
            "O DaemonPortOptions=Name=MTA, Port=25\n"
            "O DaemonPortOptions=Port=587, InputMailFilters=second; third\n"
            "Xfirst, S=local:/nosuch/1, F=T\nXsecond, S=/nosuch/2, F=T\nXthird, S=local:/nosuch/3\n"
        )
        run = self.sendmail(HEAD + daemons)
        self.assertEqual(run.data["version"], "8.17.1.9")
        self.assertEqual(
            {each["milter"]: each["places"] for each in run.data["milters"]},
            {
                "first (local:/nosuch/1)": ["InputMailFilters"],
                "second (/nosuch/2)": ["InputMailFilters of the daemon ?"],
                "third (local:/nosuch/3)": ["InputMailFilters of the daemon ?"],
            },
        )

    def test_lines_go_on_where_the_next_one_begins_with_white_space(self) -> None:
        """
        Lines go on where the next one begins with white space.
        """
        run = self.sendmail(HEAD + "Xfirst, S=local:/nosuch/1,\n   F=R", "--needs", "j")
        self.assertEqual(run.checks, {"error socket-missing", "warning when-down"})
        run = self.sendmail(HEAD + "Xfirst, S=local:/nosuch/1, F=T\n", "--needs", "daemon_name")
        self.assertEqual(run.checks, {"error socket-missing"})

    def test_empty_file_and_one_without_filters_get_a_warning(self) -> None:
        """
        An empty file, and one without filters, get a warning.
        """
        for text in ("", "V10/Berkeley\n"):
            run = self.sendmail(text)
            self.assertEqual((run.status, run.checks), (1, {"warning no-milters"}))

    def test_name_in_inputmailfilters_for_which_there_is_no_x_line_is_error(self) -> None:
        """
        A name in InputMailFilters for which there is no X line is an error.
        """
        run = self.sendmail(HEAD)
        self.assertIn("there is no line Xfirst", run["address"]["what"])

    def test_filter_that_no_list_names_is_told(self) -> None:
        """
        A filter that no list names is told.
        """
        run = self.sendmail("Xfirst, S=local:/nosuch/1, F=T\n")
        self.assertEqual((run.status, run.checks), (1, {"warning filter-unused"}))

    def test_what_sendmail_does_not_take_is_told_in_words(self) -> None:
        """
        What Sendmail does not take is told in words.
        """
        table = {
            "F=T": "has no S=",
            "S=inet:127.0.0.1:9900, F=T": "is Postfix's spelling",
            "S=inet:9900@127.0.0.1, G=T": "not G=",
            "S=inet:9900@127.0.0.1, nonsense": "'nonsense' has no =",
            "S=inet:9900@127.0.0.1, F=T, T=C:30s;S:30s;": "'' has no colon",
            "S=inet:9900@127.0.0.1, T=C:30s;X:30s": "there is no time-out X",
            "S=inet:9900@127.0.0.1, T=R:abc": "'abc' is not a time",
            "S=inet:9900@127.0.0.1, T=C:30s,R:3s": "'R:3s' has no =",
        }
        for equates, words in table.items():
            self.assertIn(words, self.of(equates)["what"])

    def test_what_becomes_of_mail_is_told_for_each_flag(self) -> None:
        """
        What becomes of mail is told for each flag, and for one that Sendmail does not know.
        """
        table = {
            ", F=T": "try again later (451)",
            ", F=4": "421",
            ", F=R": "refused for good",
            "": "because there is no F=",
            ",": "because there is no F=",
        }
        for flag, words in table.items():
            run = self.sendmail(f"{HEAD}Xfirst, S=local:/nosuch/1{flag}\n")
            self.assertIn(words, run["when-down"]["what"])
        run = self.sendmail(f"{HEAD}Xfirst, S=local:/nosuch/1, F=X\n")
        self.assertIn("F=X is unknown", run["action-unknown"]["what"])

    def test_short_time_outs_and_ones_in_the_wrong_order_are_told(self) -> None:
        """
        Short time-outs, and ones in the wrong order, are told.
        """
        run = self.sendmail(f"{HEAD}Xfirst, S=local:/nosuch/1, F=T, T=R:2;E:1s\n")
        told = [each["what"].split(":")[0] for each in run.findings if "time" in each["check"]]
        self.assertEqual(told[:2], ["R is 2 s", "E is 1 s"])
        self.assertIn("E (1 s) is shorter than R (2 s)", run["timeout-order"]["what"])
        run = self.sendmail(f"{HEAD}Xfirst, S=local:/nosuch/1, F=T, T=R:1m30s;E:10m\n")
        self.assertEqual(run.checks, {"error socket-missing"})

    def test_filters_that_may_take_longer_together_than_client_waits_are_told(self) -> None:
        """
        Filters that may take longer together than a client waits are told.
        """
        filters = "".join(f"X{name}, S=local:/nosuch/{name}, F=T, T=E:5m\n" for name in "abc")
        run = self.sendmail("O InputMailFilters=a, b, c\n" + filters)
        self.assertIn("E of all its milters together", run["timeout-sum"]["what"])

    def test_name_without_braces_and_more_names_than_sendmail_takes_are_told(self) -> None:
        """
        A name without braces, and more names than Sendmail takes, are told.
        """
        names = ", ".join(f"{{m{number}}}" for number in range(51))
        options = f"O Milter.macros.helo=cipher\nO Milter.macros.eom={names}\n"
        run = self.sendmail(f"{HEAD}{options}Xfirst, S=local:/nosuch/1, F=T\n")
        self.assertIn("Sendmail reads $c", run["macro-braces"]["what"])
        self.assertIn("51 macros at end of message", run["macro-many"]["what"])

    def test_for_macro_that_is_not_sent_there_is_line_of_sendmail_mc(self) -> None:
        """
        For a macro that is not sent there is the line of sendmail.mc.
        """
        run = self.sendmail(
            f"{HEAD}Xfirst, S=local:/nosuch/1, F=T\n", "--needs={client_ptr}", "--needs=_"
        )
        self.assertEqual(
            run["macro-missing"]["todo"],
            "write in sendmail.mc: define(`confMILTER_MACROS_CONNECT',"
            " `j, _, {daemon_name}, {client_ptr}')dnl",
        )

    def test_file_that_is_not_there_and_source_for_m4_are_errors(self) -> None:
        """
        A file that is not there, and the source for m4, are errors.
        """
        run = self.diagnose("--sendmail", str(self.folder / "nosuch.cf"))
        self.assertEqual((run.status, run.checks), (2, {"error configuration"}))
        run = self.sendmail("divert(0)dnl\n")
        self.assertIn("is the source for m4", run["configuration"]["what"])
        source = self.write("sendmail.mc", "")
        run = self.diagnose("--sendmail", str(source))
        self.assertIn("is the source for m4", run["configuration"]["what"])
