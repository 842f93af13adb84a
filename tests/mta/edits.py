"""
Scenarios: what a milter changes at the end of the message, as seen in what is delivered.
"""

from __future__ import annotations

import hashlib

from .bench import MESSAGE, MtaTestCase
from .control import script

HEADERS = ["From", "To", "Subject", "Date", "Message-Id", "X-Folded", "X-Blanks", "X-Octets"]

REPEATED = (
    b"From: sender@client.example\r\n"
    b"X-Rep: one\r\n"
    b"X-Other: between\r\n"
    b"X-Rep: two\r\n"
    b"X-Rep: three\r\n"
    b"Date: Thu, 02 Jan 2025 03:04:05 +0000\r\n"
    b"Message-Id: <2@client.example>\r\n"
    b"\r\n"
    b"body\r\n"
)


class Headers(MtaTestCase):
    """
    Header fields added, inserted, changed and deleted.
    """

    def test_smfi_addheader_puts_field_of_new_name_at_end_of_header(self) -> None:
        """
        smfi_addheader puts a field of a new name at the end of the header.
        """
        self.load(script(xxfi_eom=[("smfi_addheader", "X-Added", "value")]))
        delivery = self.deliver()
        self.assertEqual(delivery.names(), [*HEADERS, "X-Added"])
        self.assertEqual(delivery.values("X-Added"), [b"value"])
        self.assertEqual(delivery.body, MESSAGE.partition(b"\r\n\r\n")[2])

    def test_smfi_addheader_leaves_fields_of_the_same_name_alone(self) -> None:
        """
        smfi_addheader leaves fields of the same name alone.
        """
        self.load(script(xxfi_eom=[("smfi_addheader", "X-Rep", "four")]))
        values = self.deliver(REPEATED).values("X-Rep")
        old = [b"one", b"two", b"three"]
        self.assertEqual(values, [*old, b"four"] if self.traits.adds_at_end else [b"four", *old])

    def test_value_with_folds_is_delivered_with_folds(self) -> None:
        """
        A value with folds is delivered with folds.
        """
        self.load(script(xxfi_eom=[("smfi_addheader", "X-Added", "one\n\ttwo\n  three")]))
        self.assertEqual(self.deliver().values("X-Added"), [b"one\r\n\ttwo\r\n  three"])

    def test_text_of_8_bits_goes_out_as_utf_8_if_given_as_str(self) -> None:
        """
        8-bit text goes out as UTF-8 if given as str, and as it is if given as bytes.
        """
        calls = [("smfi_addheader", "X-Str", "\u00e4"), ("smfi_addheader", "X-Bytes", b"\xe4\xff")]
        self.load(script(xxfi_eom=calls))
        delivery = self.deliver()
        self.assertEqual(delivery.values("X-Str"), [b"\xc3\xa4"])
        self.assertEqual(delivery.values("X-Bytes"), [b"\xe4\xff"])

    def test_smfi_insheader_at_index_0_comes_before_mtas_own_received_field(self) -> None:
        """
        smfi_insheader at index 0 comes before the MTA's own Received field.
        """
        self.load(script(xxfi_eom=[("smfi_insheader", 0, "X-Top", "value")]))
        self.assertEqual([name for name, _ in self.deliver().fields][:2], ["X-Top", "Received"])

    def test_insert_below_trace(self) -> None:
        """
        smfi_insheader at index 1 comes after the MTA's own Received field.
        """
        self.load(script(xxfi_eom=[("smfi_insheader", 1, "X-Top", "value")]))
        names = [name for name, _ in self.deliver().fields]
        self.assertEqual(names[:3], ["Received", "X-Top", "From"])

    def test_smfi_insheader_at_higher_index_comes_between_messages_fields_as_mta_counts(
        self,
    ) -> None:
        """
        smfi_insheader at a higher index comes between the message's fields, as the MTA counts.
        """
        for position in (2, 5):
            self.sink.clear()
            index = self.traits.fields_before + position
            self.load(script(xxfi_eom=[("smfi_insheader", index, "X-Middle", "value")]))
            expected = [*HEADERS[:position], "X-Middle", *HEADERS[position:]]
            self.assertEqual(self.deliver().names(), expected)

    def test_smfi_insheader_at_an_index_beyond_the_end_appends(self) -> None:
        """
        smfi_insheader at an index beyond the end appends.
        """
        self.load(script(xxfi_eom=[("smfi_insheader", 1000, "X-Last", "value")]))
        self.assertEqual(self.deliver().names(), [*HEADERS, "X-Last"])

    def test_fields_inserted_at_index_0_end_up_in_reverse_order(self) -> None:
        """
        Fields inserted at index 0 end up in reverse order.
        """
        calls = [("smfi_insheader", 0, f"X-Top-{n}", "value") for n in (1, 2, 3)]
        self.load(script(xxfi_eom=calls))
        names = [name for name, _ in self.deliver().fields][:4]
        self.assertEqual(names, ["X-Top-3", "X-Top-2", "X-Top-1", "Received"])

    def test_smfi_chgheader_changes_one_field_in_its_place(self) -> None:
        """
        smfi_chgheader changes one field, in its place.
        """
        self.load(script(xxfi_eom=[("smfi_chgheader", "Subject", 1, "Changed")]))
        delivery = self.deliver()
        self.assertEqual(delivery.names(), HEADERS)
        self.assertEqual(delivery.values("Subject"), [b"Changed"])

    def test_change_counts_names(self) -> None:
        """
        The index of smfi_chgheader counts the fields of that name.
        """
        self.load(script(xxfi_eom=[("smfi_chgheader", "X-Rep", 2, "changed")]))
        self.assertEqual(self.deliver(REPEATED).values("X-Rep"), [b"one", b"changed", b"three"])

    def test_name_given_to_smfi_chgheader_is_found_whatever_its_case(self) -> None:
        """
        The name given to smfi_chgheader is found whatever its case.
        """
        self.load(script(xxfi_eom=[("smfi_chgheader", "SUBJECT", 1, "Changed")]))
        names = self.deliver().names()
        self.assertEqual(names[2], "SUBJECT" if self.traits.respells else "Subject")

    def test_smfi_chgheader_adds_a_field_that_is_not_there(self) -> None:
        """
        smfi_chgheader adds a field that is not there.
        """
        self.load(script(xxfi_eom=[("smfi_chgheader", "X-New", 1, "value")]))
        self.assertEqual(self.deliver().values("X-New"), [b"value"])

    def test_smfi_chgheader_with_none_deletes_one_field(self) -> None:
        """
        smfi_chgheader with None deletes one field.
        """
        self.load(script(xxfi_eom=[("smfi_chgheader", "X-Rep", 2, None)]))
        self.assertEqual(self.deliver(REPEATED).values("X-Rep"), [b"one", b"three"])

    def test_all_fields_of_a_name_are_deleted_last_one_first(self) -> None:
        """
        All fields of a name are deleted with both MTAs when the last is deleted first.
        """
        calls = [("smfi_chgheader", "X-Rep", index, "") for index in (3, 2, 1)]
        self.load(script(xxfi_eom=calls))
        delivery = self.deliver(REPEATED)
        self.assertEqual(delivery.names(), ["From", "X-Other", "Date", "Message-Id"])


class Bodies(MtaTestCase):
    """
    The body replaced.
    """

    def check(self, body: bytes) -> None:
        """
        Replace the body, and compare what is delivered.
        """
        self.load(script(xxfi_eom=[("smfi_replacebody", body)]))
        delivery = self.deliver()
        self.assertEqual(len(delivery.body), len(body))
        self.assertEqual(delivery.body, body)
        self.assertEqual(delivery.names(), HEADERS)

    def test_new_body_takes_the_place_of_the_old_one(self) -> None:
        """
        A new body takes the place of the old one.
        """
        self.check(b"new body\r\n.\r\n..\r\n8 bits: \xff\r\n")

    def test_body_can_be_replaced_with_nothing(self) -> None:
        """
        A body can be replaced with nothing.
        """
        self.check(b"")

    def test_body_longer_than_a_packet_arrives_whole(self) -> None:
        """
        A body longer than a packet arrives whole.
        """
        line = bytes(range(33, 127)) + b"\r\n"
        self.check(line * (200_000 // len(line)))

    def test_what_several_calls_of_smfi_replacebody_give_is_put_together(self) -> None:
        """
        What several calls of smfi_replacebody give is put together.
        """
        pieces = [("smfi_replacebody", piece) for piece in (b"one\r", b"\ntwo\r\n", b"three\r\n")]
        self.load(script(xxfi_eom=pieces))
        self.assertEqual(self.deliver().body, b"one\r\ntwo\r\nthree\r\n")


class Envelope(MtaTestCase):
    """
    Recipients added and removed, the sender changed, the message quarantined.
    """

    def delivered_to(self, *steps: object, recipients: tuple[str, ...]) -> dict[str, str]:
        """
        Send a message, and give the addresses and ESMTP arguments of all to whom it goes.
        """
        self.load(script(xxfi_eom=list(steps)))
        self.assertReply(self.send(recipients=recipients), 250)
        self.sink.wait()
        self.mta.settle()
        paths = [path for each in self.sink.deliveries for path in each.recipients]
        return {path.address: " ".join(path.args) for path in paths}

    def test_smfi_addrcpt_adds_a_recipient(self) -> None:
        """
        smfi_addrcpt adds a recipient.
        """
        addresses = self.delivered_to(
            ("smfi_addrcpt", "<new@sink.example>"), recipients=("<one@sink.example>",)
        )
        self.assertEqual(set(addresses), {"<one@sink.example>", "<new@sink.example>"})

    def test_add_recipient_args(self) -> None:
        """
        smfi_addrcpt_par adds a recipient with its ESMTP arguments.
        """
        addresses = self.delivered_to(
            ("smfi_addrcpt_par", "<new@sink.example>", "NOTIFY=SUCCESS,DELAY"),
            recipients=("<one@sink.example>",),
        )
        self.assertEqual(set(addresses), {"<one@sink.example>", "<new@sink.example>"})
        self.assertIn("NOTIFY=SUCCESS,DELAY", addresses["<new@sink.example>"])
        self.assertNotIn("NOTIFY", addresses["<one@sink.example>"])

    def test_add_recipient_no_args(self) -> None:
        """
        smfi_addrcpt_par without arguments does as smfi_addrcpt.
        """
        addresses = self.delivered_to(
            ("smfi_addrcpt_par", "<new@sink.example>"), recipients=("<one@sink.example>",)
        )
        self.assertEqual(set(addresses), {"<one@sink.example>", "<new@sink.example>"})

    def test_smfi_delrcpt_removes_a_recipient(self) -> None:
        """
        smfi_delrcpt removes a recipient.
        """
        addresses = self.delivered_to(
            ("smfi_delrcpt", "<two@sink.example>"),
            recipients=("<one@sink.example>", "<two@sink.example>", "<three@sink.example>"),
        )
        self.assertEqual(set(addresses), {"<one@sink.example>", "<three@sink.example>"})

    def test_all_recipients_can_be_replaced_by_another_one(self) -> None:
        """
        All recipients can be replaced by another one.
        """
        addresses = self.delivered_to(
            ("smfi_delrcpt", "<one@sink.example>"),
            ("smfi_addrcpt", "<new@sink.example>"),
            recipients=("<one@sink.example>",),
        )
        self.assertEqual(set(addresses), {"<new@sink.example>"})

    def test_smfi_chgfrom_changes_the_envelope_sender(self) -> None:
        """
        smfi_chgfrom changes the envelope sender.
        """
        self.load(script(xxfi_eom=[("smfi_chgfrom", "<other@client.example>")]))
        self.assertEqual(self.deliver().sender.address, "<other@client.example>")

    def test_change_sender_null(self) -> None:
        """
        smfi_chgfrom can make the sender the null one.
        """
        self.load(script(xxfi_eom=[("smfi_chgfrom", "<>")]))
        self.assertEqual(self.deliver().sender.address, "<>")

    def test_change_sender_args(self) -> None:
        """
        smfi_chgfrom sets ESMTP arguments too.
        """
        arguments = "RET=HDRS ENVID=changed"
        self.load(script(xxfi_eom=[("smfi_chgfrom", "<other@client.example>", arguments)]))
        sender = self.deliver().sender
        self.assertEqual(sender.address, "<other@client.example>")
        self.assertLessEqual({"RET=HDRS", "ENVID=changed"}, set(sender.args))

    def test_smfi_quarantine_keeps_an_accepted_message_from_being_delivered(self) -> None:
        """
        smfi_quarantine keeps an accepted message from being delivered.
        """
        self.load(script(xxfi_eom=[("smfi_quarantine", "looks odd")]))
        self.addCleanup(self.mta.release)
        self.assertReply(self.send(), 250)
        reasons = self.mta.quarantined()
        self.assertEqual(len(reasons), 1)
        if self.traits.keeps_reason:
            self.assertIn("looks odd", reasons[0])
        self.assertNothingDelivered()


class Together(MtaTestCase):
    """
    Edits of all kinds at once, and edits that come to nothing.
    """

    EDITS = (
        ("smfi_insheader", 0, "X-Top", "top"),
        ("smfi_addheader", "X-Added", "added"),
        ("smfi_replacebody", b"new body\r\n"),
        ("smfi_chgheader", "Subject", 1, "Changed"),
        ("smfi_chgheader", "X-Blanks", 1, None),
        ("smfi_addrcpt", "<new@sink.example>"),
        ("smfi_chgfrom", "<other@client.example>"),
    )

    def check_all(self) -> None:
        """
        Check that all of the edits were made.
        """
        delivery = self.deliver()
        names = [name for name in HEADERS if name != "X-Blanks"]
        self.assertEqual(delivery.names(), ["X-Top", *names, "X-Added"])
        self.assertEqual(delivery.values("Subject"), [b"Changed"])
        self.assertEqual(delivery.body, b"new body\r\n")
        self.assertEqual(delivery.sender.address, "<other@client.example>")
        self.mta.settle()
        recipients = {p.address for each in self.sink.deliveries for p in each.recipients}
        self.assertEqual(recipients, {"<rcpt@sink.example>", "<new@sink.example>"})

    def test_edits_of_all_kinds_are_made_with_continue(self) -> None:
        """
        Edits of all kinds are made with CONTINUE.
        """
        self.load(script(xxfi_eom=[*self.EDITS, "CONTINUE"]))
        self.check_all()

    def test_edits_of_all_kinds_are_made_with_accept(self) -> None:
        """
        Edits of all kinds are made with ACCEPT.
        """
        self.load(script(xxfi_eom=[*self.EDITS, "ACCEPT"]))
        self.check_all()

    def test_edits_of_all_kinds_are_made_by_a_coroutine(self) -> None:
        """
        Edits of all kinds are made by a coroutine.
        """
        self.load(script(how="coroutine", xxfi_eom=[*self.EDITS]))
        self.check_all()

    def test_smfi_progress_before_the_edits_does_not_disturb_them(self) -> None:
        """
        smfi_progress before the edits does not disturb them.
        """
        self.load(script(xxfi_eom=[("smfi_progress",), *self.EDITS]))
        self.check_all()

    def test_edits_of_a_message_that_is_refused_are_without_effect(self) -> None:
        """
        Edits of a message that is refused are without effect.
        """
        self.load(script(xxfi_eom=[*self.EDITS, "REJECT"]))
        self.assertReply(self.send(), self.traits.content_reject)
        self.assertNothingDelivered()

    def test_message_of_20_mb_passes_through_untouched(self) -> None:
        """
        A message of 20 MB passes through untouched, and the milter gets all of it.
        """
        line = bytes(range(33, 127)) + b"\r\n"
        body = line * (20_000_000 // len(line))
        message = MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body
        self.load(script(xxfi_eom=[("smfi_addheader", "X-Added", "value")]))
        delivery = self.deliver(message)
        digests = [hashlib.sha256(each).hexdigest() for each in (delivery.body, body)]
        self.assertEqual(digests[0], digests[1])
        self.assertEqual(delivery.values("X-Added"), [b"value"])
        chunks = [args[0] for args in self.milter.arguments("xxfi_body")]
        sizes = [c["size"] if isinstance(c, dict) else len(c) for c in chunks]
        self.assertEqual(sum(sizes), len(body))
        self.assertLessEqual(max(sizes), 65_535)
