"""What llama-server does with prompts that it has seen, and Gemma's cache of a sliding window, which is a ring: its cells are written again and
again, in any order when slots share it.

--cache-reuse moves a chunk of the last prompt to other positions; --cache-ram puts a slot's cache aside, as a state in memory, and takes it back. The f16 codec
is compared with stock, other codecs with themselves. TOSS_UP_SAME and TOSS_UP_STOCK: drafts_test.py. --codecs NAME,NAME: others than f16, k4v3.

TEST_SWA_MODEL: Gemma 3 270M, whose window has 512 tokens.
"""
import os
import sys
import tempfile
import threading

from drafts_test import TOSS_UP_SAME, TOSS_UP_STOCK, compare
from llama_host import MODEL, Checks, Server, prose

SWA_MODEL = os.environ.get("TEST_SWA_MODEL", os.path.join(os.path.dirname(MODEL), "gemma3-270m.gguf"))
# A chunk that was moved, and the exact rows that became codes with it, change an answer as the codec does: mean nats of its tokens.
MOVED_LOSS = 0.5
# Nats. Stock moves the margin of this model's first token by 0.51 from a prompt alone to the same beside two others.
TOSS_UP_SWA = 1.0


def ask(server, text, n=24, slot=-1, **more):
    return server.complete(text, n, slot, n_probs=2, **more)


def same(checks, name, plain, others, toss_up):
    n, n_toss_ups, wrong = compare(plain, others, toss_up)
    return checks.check(not wrong, f"{name}: {n} tokens, {n_toss_ups} toss-ups {wrong or ''}")


def chunks_moved(codec, arguments):
    """Two prompts; the second begins like the first, leaves a part out and goes on like it. Then the number of tokens that were reused."""
    with Server(codec, "-np", 1, "-c", 2048, "--cache-ram", 0, *arguments) as server:
        # In tokens: letters at the seams would make other ones.
        head, dropped, kept = (server.tokens(t) for t in (prose(500), prose(900, 4000), prose(1500, 7000)))
        ask(server, head + dropped + kept, 1)
        answer = ask(server, head + kept)
        return answer, answer["timings"]["cache_n"]


def mean_loss(a, b):
    """Of the tokens that two answers share: how far their log probabilities are apart."""
    n = next((i for i, (x, y) in enumerate(zip(a["tokens"], b["tokens"])) if x != y), len(a["tokens"]))
    moved = [abs(x["logprob"] - y["logprob"]) for x, y in zip(a["completion_probabilities"][:n], b["completion_probabilities"][:n])]
    return sum(moved) / max(1, n), n


def cache_reuse(checks, codecs):
    reuse = ["--cache-reuse", 32]
    stock, n_stock = chunks_moved(None, reuse)
    for codec in codecs:
        ours, n_ours = chunks_moved(codec, reuse)
        checks.check(n_ours == n_stock > 350, f"{codec}, --cache-reuse: {n_ours} tokens reused, stock {n_stock}")
        if codec == "f16":
            same(checks, "f16, --cache-reuse, and stock", [stock], [ours], TOSS_UP_STOCK)
        else:
            loss, n = mean_loss(stock, ours)
            checks.check(loss < MOVED_LOSS and n > 0, f"{codec}, --cache-reuse: {n} tokens as stock's, {loss:.3f} nats apart")


def cache_ram(checks, codecs):
    text, other = prose(1900), prose(1600, 5000)
    for codec in codecs:
        # In a unified cache what comes back lies in other cells, and its sums run in another order.
        for name, arguments, toss_up in (("one slot", ["-np", 1], TOSS_UP_SAME),
                                         ("unified slots, idle ones put aside", ["-np", 2, "--kv-unified"], TOSS_UP_STOCK)):
            with Server(codec, "-c", 2048, "--cache-ram", 512, *arguments) as server:
                ask(server, text)
                again = ask(server, text)  # from the slot: rolled back by an answer's length, as what comes from memory is
                for i in range(3):
                    ask(server, other[i * 100:])
                back = ask(server, text)
            cached = back["timings"]["cache_n"]
            checks.check(cached == again["timings"]["cache_n"] > 300, f"{codec}, --cache-ram, {name}: {cached} tokens come back from memory")
            same(checks, f"{codec}, --cache-ram, {name}", [again], [back], toss_up)


def side_by_side(server, texts, n):
    answers = [None] * len(texts)

    def one(i):
        answers[i] = ask(server, texts[i], n, i)
    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(texts))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return answers


def sliding_window(checks, codecs):
    if not os.path.exists(SWA_MODEL):
        print(f"        no {SWA_MODEL}: the sliding window is not tested")
        return
    # More than the ring holds (512 and a batch), in slots that take turns in it.
    texts = [prose(4400), prose(3300, 2000), prose(3800, 5000)]
    more = [t + prose(700, 9000) for t in texts]
    stock, n_kept, shifted = None, None, {}
    for codec in [None, *codecs]:
        name = codec or "stock"
        with tempfile.TemporaryDirectory() as folder, Server(codec, "-np", 3, "-c", 3 * 1536, "--kv-unified", "-ub", 128, "--cache-ram", 0,
                                                             "--slot-save-path", folder, model=SWA_MODEL) as server:
            alone = [ask(server, t, 16, 0, cache_prompt=False) for t in texts]
            together = side_by_side(server, texts, 16)
            same(checks, f"{name}, sliding window, slots side by side and alone", alone, together, TOSS_UP_SWA)
            # A slot goes on where it ended; then the same from a file, in another slot.
            whole = texts[1] + together[1]["content"]
            status, saved = server.request("POST", "/slots/1?action=save", {"filename": "slot"})
            onwards = ask(server, whole + " And", 12, 1)
            server.request("POST", "/slots/2?action=erase")
            status, restored = server.request("POST", "/slots/2?action=restore", {"filename": "slot"})
            checks.check(status == 200 and restored["n_restored"] == saved["n_saved"], f"{name}, sliding window: slot restored, {restored}")
            elsewhere = ask(server, whole + " And", 12, 2)
            same(checks, f"{name}, sliding window, restored slot", [onwards], [elsewhere], TOSS_UP_SWA)
            # llama-server computes a restored prompt anew where its window is cut off, stock as well.
            kept = [a["timings"]["cache_n"] for a in (onwards, elsewhere)]
            n_kept = kept[1] if codec is None else n_kept
            checks.check(kept[0] > 300 and kept[1] == n_kept, f"{name}, sliding window: tokens kept in the slot and in the restored one {kept}, stock {n_kept}")
            again = side_by_side(server, more, 16)
            answers = alone + again
            if codec is None:
                stock = answers
            elif codec == "f16":
                same(checks, "f16, sliding window, and stock", stock, answers, TOSS_UP_SWA)
        for arguments, shifts in ((["--context-shift"], False), (["--context-shift", "--swa-full"], True)):
            with Server(codec, "-np", 1, "-c", 1024, "-ub", 128, "--cache-ram", 0, *arguments, model=SWA_MODEL) as server:
                answer = ask(server, prose(3600), 220)
                refused = "context shift is not supported" in server.log() or "context_shift is not supported" in server.log()
            checks.check(refused != shifts, f"{name}, {' '.join(arguments)}: {'shifts' if shifts else 'refused in one line'}; {len(answer['tokens'])} tokens")
            if codec is None:
                shifted[shifts] = answer
            elif codec == "f16":
                same(checks, f"f16, sliding window, {' '.join(arguments)}, and stock", [shifted[shifts]], [answer], TOSS_UP_SWA)
            else:
                checks.check(len(answer["tokens"]) == len(shifted[shifts]["tokens"]), f"{codec}, {' '.join(arguments)}: as many tokens as stock")


def main():
    at = sys.argv.index("--codecs") if "--codecs" in sys.argv else None
    codecs = sys.argv[at + 1].split(",") if at else ["f16", "k4v3", "hybrid", "k3v3"]
    checks = Checks()
    cache_reuse(checks, codecs)
    cache_ram(checks, codecs)
    sliding_window(checks, codecs)
    checks.exit()


if __name__ == "__main__":
    main()
