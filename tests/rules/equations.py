"""The equation of every rule as its source has it, one number at a time. Nothing here is a tensor."""

from __future__ import annotations

import math

from tests.rules.cases import mean, softmax

# --- choices: weights on -log p ------------------------------------------------------------------------------


def best(bag, c, k):
    """-log p_c at the k most probable of the bag's cells, averaged."""
    return mean(sorted(-math.log(p[c]) for p in bag.p)[: cells(k, bag.n)])


def cells(k, n):
    return max(1, round(k * n)) if k < 1 else min(round(k), n)


def top_k(bag, k=0.2):
    return mean(best(bag, c, k) for c in bag.present)


def average(bag):
    return mean(mean(-math.log(p[c]) for p in bag.p) for c in bag.present)


def oracle(bag):
    return mean(-math.log(p[label]) for p, label in zip(bag.p, bag.mask, strict=True))


# --- targets -------------------------------------------------------------------------------------------------


def crossed(bag, targets):
    """Mean over the cells of the cross entropy to a distribution at each."""
    pairs = zip(bag.p, targets, strict=True)
    return mean(-sum(t * math.log(p[c]) for c, t in target.items() if t) for p, target in pairs)


def em_fixed(bag, fg=5.0, bg=3.0):
    targets = []
    for s in bag.s:
        biased = {c: v + (bg if c == 0 else fg) * (c in bag.present) for c, v in s.items()}
        targets.append({max(biased, key=biased.get): 1.0})
    return targets


def em_adapt(bag, bg=0.4, fg=0.2, rounds=5):
    s = [{c: math.log(p[c]) for c in sorted(bag.present)} for p in bag.p]
    for _ in range(rounds):
        for c in sorted(bag.present):
            behind = sorted(max(cell.values()) - cell[c] for cell in s)
            nth = min(int((bg if c == 0 else fg) * bag.n), bag.n - 1)
            for cell in s:
                cell[c] += behind[nth] + 1e-4 if behind[nth] > 0 else 0.0
    return [{max(cell, key=cell.get): 1.0} for cell in s]


def ccnn_dual(bag, u):
    """The value of CCNN's dual at multipliers u, by its formula, and its distributions."""
    logs = []
    targets = []
    for p in bag.p:
        raised = {c: p[c] * math.exp(u[c]) for c in bag.present}
        total = sum(raised.values())
        logs.append(math.log(total))
        targets.append({c: v / total for c, v in raised.items()})
    value = -mean(logs)
    for c in bag.present:
        high = 0.7 if bag.front else 1.0
        value += (0.3 if u[c] > 0 else high) * u[c] if c == 0 else 0.05 * u[c]
    return value, targets


def ccnn(bag, slack=2.0):
    """The dual's maximum by ternary search in each coordinate in turn."""
    u = dict.fromkeys(bag.present, 0.0)
    for _ in range(12):
        for c in bag.present:
            left, right = (-30.0, 30.0) if c == 0 else (0.0, slack)
            for _ in range(42):
                a, b = left + (right - left) / 3, right - (right - left) / 3
                if ccnn_dual(bag, {**u, c: a})[0] < ccnn_dual(bag, {**u, c: b})[0]:
                    left = a
                else:
                    right = b
            u[c] = (left + right) / 2
    return ccnn_dual(bag, u)[1]


# --- pooling of scores ---------------------------------------------------------------------------------------


def competing(bag, pooled):
    return -mean(math.log(softmax(pooled)[c]) for c in bag.present)


def logistic(bag, pooled, classes=None):
    known = bag.known if classes is None else classes
    return mean(math.log1p(math.exp(-pooled[c] if c in bag.present else pooled[c])) for c in known)


def lse(values, r):
    return math.log(mean(math.exp(r * v) for v in values)) / r


def log_sum_exp_scores(bag, r=5.0, loss=competing):
    return loss(bag, {c: lse([s[c] for s in bag.s], r) for c in bag.known})


def average_scores(bag, loss=competing):
    return loss(bag, {c: mean(s[c] for s in bag.s) for c in bag.known})


def wildcat(bag, k=0.2, alpha=0.7, loss=logistic):
    pooled = {}
    for c in bag.known:
        rising = sorted(s[c] for s in bag.s)
        number = cells(k, bag.n)
        pooled[c] = mean(rising[-number:]) + alpha * mean(rising[:number])
    return loss(bag, pooled)


def weighted_pooling(bag, power=3.0, floor=0.01):
    z = {}
    for c in bag.known:
        area = mean(p[c] for p in bag.p)
        both = zip(bag.p, bag.s, strict=True)
        y = sum(p[c] * (s[c] - s[0] + 1) for p, s in both) / (1 + area * bag.n)
        z[c] = y + (1 - area) ** power * math.log(floor + area)
    return logistic(bag, z, [c for c in bag.known if c != 0])


def binary_max(bag):
    return logistic(bag, {c: max(s[c] for s in bag.s) for c in bag.known})


def max_margin(bag, margin=1.0):
    top = {c: max(s[c] for s in bag.s) for c in bag.known}
    return mean(max(0.0, margin - top[c] if c in bag.present else margin + top[c]) for c in bag.known)


def attention(bag, rule):
    """`rule` is a module; its parameters are read as lists."""
    v, w = rule.V.tolist(), rule.w.tolist()
    u = None if rule.U is None else rule.U.tolist()
    h = [{c: s[c] - mean(s.values()) for c in bag.known} for s in bag.s]

    def dot(row, cell):
        return sum(row[c] * x for c, x in cell.items())

    pooled = {}
    for c in bag.known:
        row = w[c if len(w) > 1 else 0]
        logits = {}
        for i, cell in enumerate(h):
            hidden = [math.tanh(dot(line, cell)) for line in v]
            if u is not None:
                gates = [1 / (1 + math.exp(-dot(line, cell))) for line in u]
                hidden = [a * b for a, b in zip(hidden, gates, strict=True)]
            logits[i] = sum(a * b for a, b in zip(row, hidden, strict=True))
        a = softmax(logits)
        pooled[c] = sum(a[i] * cell[c] for i, cell in enumerate(h))
    return competing(bag, pooled)


# --- pooling of probabilities --------------------------------------------------------------------------------


def up_and_down(bag, pooled, absent):
    up = -mean(math.log(pooled[c]) for c in bag.present)
    return up - absent * mean(math.log(1 - pooled[c]) for c in bag.absent)


def log_sum_exp_probs(bag, r=5.0, absent=0.0):
    return up_and_down(bag, {c: lse([p[c] for p in bag.p], r) for c in bag.known}, absent)


def noisy_or(bag, start=0.5, absent=1.0):
    pooled = {}
    shift = 1.0
    if start:
        each = 1 - (1 - start) ** (1 / bag.n)
        uniform = 1 / len(bag.known)
        shift = each / (1 - each) / (uniform / (1 - uniform))
    for c in bag.known:
        none = 1.0
        for p in bag.p:
            odds = p[c] / (1 - p[c]) * shift
            none *= 1 - odds / (1 + odds)
        pooled[c] = 1 - none
    return up_and_down(bag, pooled, absent)


def rank_pooling(bag, fg=0.996, bg=0.999, absent=1.0, reference=1681.0):
    def pooled(c, d):
        falling = sorted((p[c] for p in bag.p), reverse=True)
        power = reference / bag.n if reference else 1.0
        weights = [d ** (j * power) for j in range(bag.n)]
        return sum(w * p for w, p in zip(weights, falling, strict=True)) / sum(weights)

    loss = -mean(math.log(pooled(c, fg)) for c in bag.front)
    loss -= absent * mean(math.log(1 - max(p[c] for p in bag.p)) for c in bag.absent)
    return loss - math.log(pooled(0, bg))


# --- terms ---------------------------------------------------------------------------------------------------


def hard_negatives(bag, k=1.0, weight=1.0):
    number = cells(k, bag.n)
    hardest = {c: sorted((p[c] for p in bag.p), reverse=True)[:number] for c in bag.absent}
    return weight * mean(mean(-math.log(1 - p) for p in hardest[c]) for c in bag.absent)


def consistency(bag, bags, weight=0.1):
    def shown(other, c, known):
        """What a bag predicts where it shows c, over the classes in `known`."""
        total = sum(p[c] for p in other.p)
        m = {k: sum(p[c] / total * p[k] for p in other.p) for k in known}
        return {k: v / sum(m.values()) for k, v in m.items()}

    terms = []
    for c in bag.front:
        others = [other for other in bags if other is not bag and c in other.front]
        divergences = []
        for other in others:
            known = [k for k in bag.known if k in other.known]
            mine, theirs = shown(bag, c, known), shown(other, c, known)
            divergences.append(sum(theirs[k] * math.log(theirs[k] / mine[k]) for k in known))
        if others:
            terms.append(mean(divergences))
    return weight * mean(terms)


# --- segments ------------------------------------------------------------------------------------------------


class Merged:
    """A bag whose cells are another's segments, each with the mean probabilities of its cells."""

    def __init__(self, bag):
        self.known, self.present, self.absent, self.front = bag.known, bag.present, bag.absent, bag.front
        numbers = sorted({number for number in bag.segment if number >= 0})
        members = [[p for p, s in zip(bag.p, bag.segment, strict=True) if s == number] for number in numbers]
        self.p = [{c: mean(p[c] for p in group) for c in bag.known} for group in members]
        self.n = len(self.p)


# name -> (bag, all bags of the batch, the rule) -> loss, with the defaults of each rule
EQUATIONS = {
    "max": lambda bag, bags, rule: top_k(bag, 1),
    "top-k": lambda bag, bags, rule: top_k(bag),
    "average": lambda bag, bags, rule: average(bag),
    "oracle": lambda bag, bags, rule: oracle(bag),
    "binary-max": lambda bag, bags, rule: binary_max(bag),
    "em-fixed": lambda bag, bags, rule: crossed(bag, em_fixed(bag)),
    "em-adapt": lambda bag, bags, rule: crossed(bag, em_adapt(bag)),
    "ccnn": lambda bag, bags, rule: crossed(bag, ccnn(bag)),
    "log-sum-exp-scores": lambda bag, bags, rule: log_sum_exp_scores(bag),
    "log-sum-exp-probs": lambda bag, bags, rule: log_sum_exp_probs(bag),
    "average-scores": lambda bag, bags, rule: average_scores(bag),
    "wildcat": lambda bag, bags, rule: wildcat(bag),
    "weighted-pooling": lambda bag, bags, rule: weighted_pooling(bag),
    "noisy-or": lambda bag, bags, rule: noisy_or(bag),
    "rank-pooling": lambda bag, bags, rule: rank_pooling(bag),
    "max-margin": lambda bag, bags, rule: max_margin(bag),
    "attention": lambda bag, bags, rule: attention(bag, rule),
    "hard-negatives": lambda bag, bags, rule: hard_negatives(bag),
    "consistency": lambda bag, bags, rule: consistency(bag, bags),
    "segment-max": lambda bag, bags, rule: top_k(Merged(bag), 1),
    "segment-top-k": lambda bag, bags, rule: top_k(Merged(bag)),
    "segment-average": lambda bag, bags, rule: average(Merged(bag)),
    "segment-em-adapt": lambda bag, bags, rule: crossed(Merged(bag), em_adapt(Merged(bag))),
    "segment-ccnn": lambda bag, bags, rule: crossed(Merged(bag), ccnn(Merged(bag))),
}
