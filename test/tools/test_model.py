#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What isgq_model predicts and refuses.

usage: test_model.py BIN_DIR [CASE...]      standard library only; exit status as test_programs.py
"""
from test_programs import Case, main


class Model(Case):
    needs = ["isgq_model"]

    def predict(self, *arguments):
        return {(row["nranks"], row["layer"], row["way"], row["quantizer"]): row for row in self.rows("isgq_model", *arguments)}

    def test_bytes_are_those_of_plans(self):
        rows = self.predict("--cluster", "4@1GB/s:0us", "--layers", "1024x1024", "-q", "none;uniform:bits=4")
        plain = rows[4, "all", "direct", "none"]
        self.assertAlmostEqual(plain["sent_bytes"], 2 * 3 / 4 * 4 * 1024 * 1024)
        self.assertAlmostEqual(plain["ratio"], 1)
        self.assertAlmostEqual(plain["wire_s"], plain["sent_bytes"] / 1e9)
        # 4 bits to the owner, 6 of the sum of 4 ranks back, scales
        self.assertLess(abs(rows[4, "all", "direct", "uniform:bits=4"]["ratio"] / (64 / 10) - 1), 0.05)

    def test_best_is_no_slower_than_any(self):
        rows = self.predict("--layers", "alexnet", "--ranks", "16,1024,100000", "--per-layer")
        self.assertEqual({key[0] for key in rows}, {16, 1024, 100000})
        for (ranks, layer, way, quantizer), row in rows.items():
            if (ranks, layer, "best", quantizer) in rows and way != "tree":
                self.assertLessEqual(rows[ranks, layer, "best", quantizer]["total_s"], row["total_s"] * (1 + 1e-12), (ranks, way, quantizer))
        self.assertGreater(len({key[1] for key in rows}), 3)

    def test_nothing_to_gain(self):
        text = self.succeed("isgq_model", "--cluster", "8@1000GB/s:1us", "--encode", "1", "-q", "none;uniform:bits=4").stdout
        self.assertIn("do nothing", text.splitlines()[-1])
        text = self.succeed("isgq_model", "--cluster", "8@1MB/s:1us", "--layers", "1000x1000", "-q", "none;uniform:bits=4").stdout
        self.assertIn("uniform:bits=4 by ", text.splitlines()[-1])

    def test_refusals(self):
        for arguments, words in ((["--cluster", "4"], "4"), (["--cluster", "4@1parsec:1us"], "rate"), (["--cluster", "0@1GB/s:1us"], "0@1GB/s"),
                                 (["--cluster", "4@1GB/s"], "latency"), (["--cluster", "4@0GB/s:1us"], "4@0GB/s"),
                                 (["--cluster", "100000@1GB/s:1us,100000@1GB/s:1us"], "ranks"), (["--layers", "12x"], "12x"),
                                 (["--layers", "resnet"], "resnet"), (["--ranks", "6", "--cluster", "4@1GB/s:1us,2@1GB/s:1us"], "6 ranks"),
                                 (["-q", "unifrom"], "unifrom"), (["--overlap", "2"], "overlap")):
            self.refuse("isgq_model", *arguments, mention=words)


if __name__ == "__main__":
    main(__doc__)
