"""The components once more, written as their definitions read: loops over users and items, no arrays.

`Counted(sequences, catalog, without)` is what all of them count; `without` is the number of an interaction that is left out, so
each function is at once the recomputation that leave-one-out must equal.
"""

import math
from collections import Counter


class Counted:
    """What is counted in users' sequences, but for one interaction."""

    def __init__(self, sequences, catalog, without=None):
        self.catalog = catalog
        number, self.bought, self.baskets, self.pairs = 0, Counter(), [], {gap: Counter() for gap in (1, 2, 3)}
        for sequence in sequences:
            numbers = range(number, number + len(sequence))
            number += len(sequence)
            kept = [item for place, item in zip(numbers, sequence, strict=True) if place != without]
            self.bought.update(kept)
            self.baskets.append(set(kept))
            for gap, pairs in self.pairs.items():
                for end in range(gap, len(sequence)):
                    if numbers[end] != without:
                        pairs[sequence[end - gap], sequence[end]] += 1

    def normalised(self, scores):
        total = sum(scores)
        return [score / total for score in scores] if total else self.popularity(())

    def popularity(self, history, smoothing=1.0):
        return self.normalised([self.bought[item] + smoothing for item in range(self.catalog)])

    def markov(self, history):
        return self.normalised([self.pairs[1][history[-1], item] if len(history) else 0 for item in range(self.catalog)])

    def skip(self, history, gap_weights=(1.0, 0.5, 0.33), last=5, decay=0.6):
        scores = [0.0] * self.catalog
        for back, source in enumerate(list(history)[::-1][:last]):
            followed = [
                sum(weight * self.pairs[gap][source, item] for gap, weight in enumerate(gap_weights, 1))
                for item in range(self.catalog)
            ]
            scores = [score + decay**back * count for score, count in zip(scores, followed, strict=True)]
        return self.normalised(scores)

    def item_knn(self, history, neighbours=100, shrinkage=10.0):
        users = [sum(item in basket for basket in self.baskets) for item in range(self.catalog)]
        scores = [0.0] * self.catalog
        for source in history:
            similar = {}
            for item in range(self.catalog):
                together = sum(source in basket and item in basket for basket in self.baskets)
                if item != source and together:
                    similar[item] = together / (math.sqrt(users[source]) * math.sqrt(users[item]) + shrinkage)
            for item in sorted(similar, key=lambda item: (-similar[item], item))[:neighbours]:
                scores[item] += similar[item]
        return self.normalised(scores)

    def text(self, history, vectors, temperature=0.1, last=5, decay=0.6):
        def cosine(first, second):
            lengths = math.hypot(*first) * math.hypot(*second)
            return sum(a * b for a, b in zip(first, second, strict=True)) / lengths if lengths else 0.0

        scores = [0.0] * self.catalog
        for back, source in enumerate(list(history)[::-1][:last]):
            if not any(vectors[source]):
                continue
            weights = [math.exp(cosine(vector, vectors[source]) / temperature) for vector in vectors]
            weights[source] = 0.0
            scores = [score + decay**back * weight / sum(weights) for score, weight in zip(scores, weights, strict=True)]
        return self.normalised(scores)

    def bucket(self, history):
        followers = {item: self.pairs[1][history[-1], item] for item in range(self.catalog)} if len(history) else {}
        total, distinct = sum(followers.values()), sum(count > 0 for count in followers.values())
        if not total:
            return 0
        return 3 * (int(math.log2(total)) + 1 if total < 32 else 6) + (distinct / total > 1 / 3) + (distinct / total > 2 / 3)
