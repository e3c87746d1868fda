#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What isgq_plan prints: the stages of a call, and as many bytes as isgq_perf counts when the call is made.

usage: test_plans.py BIN_DIR [CASE...]      standard library only; exit status as test_programs.py
"""
import re

from test_programs import Case, have, main


class Plan(Case):
    needs = ["isgq_plan"]
    shape = ["-c", "factored", "--rows", "9", "--m", "37", "--n", "23", "--bias"]

    def plan(self, nranks, *arguments):
        """The lines of each rank."""
        rows = self.rows("isgq_plan", "-n", str(nranks), *arguments)
        lines = [[row["line"] for row in rows if row["rank"] == rank] for rank in range(nranks)]
        self.assertTrue(all(lines), arguments)
        self.assertEqual(len(rows), sum(map(len, lines)))
        return lines

    def stages(self, lines):
        name = re.compile(r"stage (\d+): ([a-z_ ]+?)(?:,| direct| exchange| board| ring| chain| dissemination)")
        found = [name.match(line).groups() for line in lines if line.startswith("stage")]
        self.assertEqual([int(number) for number, _ in found], list(range(len(found))))
        return [words for _, words in found]

    def sent(self, nranks, *arguments):
        """The most bytes that a rank sends."""
        total = re.compile(r"sends \d+ messages?, (?:at most )?(\d+) B with frames")
        return max(int(total.fullmatch(lines[-1]).group(1)) for lines in self.plan(nranks, *arguments))

    def test_plans(self):
        for collective in ("allreduce", "reduce_scatter", "allgather", "broadcast", "barrier"):
            for lines in self.plan(3, "-c", collective, "--count", "999"):
                self.assertEqual(self.stages(lines), [collective])
        one = self.rows("isgq_plan", "-n", "4", "--rank", "2", "-a", "ring", "--count", "1k")
        self.assertEqual({row["rank"] for row in one}, {2})
        self.assertEqual(self.stages(self.plan(3, "-q", "uniform:bits=4")[1]), ["scales", "maximum of scales", "allreduce"])

    def test_factored_ways(self):
        begin = ["prepare", "maximum of peaks", "encode"]
        stages = {
            "gather": begin + ["gather", "decode", "product"],
            "share": begin + ["gather", "decode", "rows", "open rows", "product", "bands", "deliver"],
            "owner": begin + ["cut", "parts", "open parts", "product", "blocks", "deliver"],
            "reduce": begin + ["integer product", "sum of integers", "deliver"],
            "dense": ["local gradient", "scales", "sum of scales", "agreed scales", "allreduce", "copy out"],
        }
        self.plan(4, "-c", "factored", "--m", "40", "-q", "isgq:bits=4", "-a", "share")  # bands of equal height go straight to the output
        for nranks in (1, 3):
            for way, names in stages.items():
                for rank, lines in enumerate(self.plan(nranks, *self.shape, "-q", "isgq:bits=4", "-a", way)):
                    self.assertEqual(lines[0], f"factored {way}, rank {rank} of {nranks}, 9 rows, X of 37 and Delta of 23 "
                                     f"columns, f32, with bias: {way} was asked for")
                    self.assertEqual(self.stages(lines), names)
        few = self.plan(4, "-c", "factored", "--rows", "32", "-q", "factor:bits=4")[0]
        many = self.plan(4, "-c", "factored", "--rows", "4000", "-q", "isgq:bits=4")[0]
        self.assertRegex(few[0], r"^factored share, .*: factors 89 KiB, integers 9.0 MiB, dense 4.5 MiB, owners \d.*$")
        self.assertRegex(many[0], r"^factored dense, .* integers 9.0 MiB, dense 1.[13] MiB, owners \d.*$")

    def test_text_and_json_agree(self):
        for arguments in (["-n", "3", *self.shape, "-q", "factor:width=4"], ["-n", "2", "-q", "isgq:bits=2.5", "--count", "40k"]):
            text = self.succeed("isgq_plan", *arguments).stdout.splitlines()
            self.assertEqual([line for line in text if line], [row["line"] for row in self.rows("isgq_plan", *arguments)])

    def test_calls_send_what_plans_say(self):
        if not have("isgq_perf"):
            self.skipTest("isgq_perf was not built")
        dense = (["-b", "240k", "-e", "240k"], ["--count", "60k"])
        gathered = (dense[0], ["--count", "180k"])  # a rank's input there, the whole tensor here
        factored = (self.shape[2:], self.shape[2:])
        cases = [("allreduce", "none;uniform:bits=3,scale=local;isgq:bits=2.5,coding=none", dense, ("auto", "direct", "exchange", "board", "ring", "levels")),
                 ("reduce_scatter", "none;uniform:bits=3", dense, ("auto", "ring")),
                 ("allgather", "none;uniform:bits=3", gathered, ("auto", "ring")), ("broadcast", "none", dense, ("auto",)),
                 ("factored", "isgq:bits=4;uniform:bits=4", factored, ("auto", "dense")),
                 ("factored", "isgq:bits=4;factor:width=4", factored, ("gather", "share", "owner", "reduce"))]
        for collective, quantizers, (size, count), algorithms in cases:
            for algorithm in algorithms:
                common = ("-c", collective, "-a", algorithm)
                for row in self.rows("isgq_perf", "-n", "3", "-w", "0", "-i", "1", "-q", quantizers, *common, *size):
                    where = (*common, row["quantizer"])
                    planned = self.sent(3, "-q", row["quantizer"], *common, *count)
                    coded = row["algorithm"] == "dense" and row["quantizer"].startswith("isgq") and "coding=none" not in row["quantizer"]
                    if coded or row["algorithm"] in ("gather", "share", "owner"):  # blobs and entropy codes are as long as the data makes them
                        self.assertLessEqual(row["wire_bytes"], planned, where)
                        self.assertGreater(row["wire_bytes"], planned / (5 if coded else 3), where)
                    else:
                        self.assertEqual(row["wire_bytes"], planned, where)

    def test_refusals(self):
        factored = ("-c", "factored")
        for arguments, mention in (
                (["-n", "4", "--rank", "4"], "rank 4"), (["-c", "alltoall"], "alltoall"), (["-a", "no-such-way"], "no-such-way"),
                (["-n", "3", "-c", "allgather", "--count", "100"], "100"), (["-q", "factor:width=4"], "factored"),
                (["--rows", "8"], "--rows"), ([*factored, "--count", "8"], "--count"), ([*factored, "-a", "ring"], "gather"),
                ([*factored, "-a", "gather"], "gather"), ([*factored, "-d", "i32"], "i32"), ([*factored, "-q", "foo"], "foo"),
                ([*factored, "-q", "isgq", "-a", "reduce", "--rows", "1000000", "--m", "100k"], "100k"),
                ([*factored, "-q", "factor:bits=4", "-a", "gather", "--rows", "1000000"], "SCRATCH")):
            self.refuse("isgq_plan", *arguments, mention=mention)


if __name__ == "__main__":
    main(__doc__)
