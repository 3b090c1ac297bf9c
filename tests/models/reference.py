"""RE-GCN and TiRGN a second time, as plainly as their mathematics: loops over edges, entities and queries.

Everything is float64 and NumPy, nothing comes from the package. Weights come by the names of a
checkpoint's arrays; docs/reference/networks.md lists them with their shapes. Facts are lists of
``(s, r, o)``; entities, relations and logits are arrays with one row for each. Training moves the
running statistics inside ``weights``, as the networks do.
"""

import math

import numpy as np

LEAKY_SLOPE = 11 / 48


def l2(row):
    return row / max(math.sqrt(sum(x * x for x in row)), 1e-12)


def l2_rows(rows):
    return np.array([l2(row) for row in rows])


def leaky_relu(row):
    return np.array([x if x >= 0 else LEAKY_SLOPE * x for x in row])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(logits):
    powers = np.exp(logits - max(logits))
    return powers / sum(powers)


def part(weights, prefix):
    """The weights below a name; the arrays are the same ones, not copies."""
    return {name.removeprefix(f"{prefix}/"): array for name, array in weights.items() if name.startswith(f"{prefix}/")}


def both_directions(facts, num_relations):
    """Each fact, and after all of them each with subject and object exchanged under the inverse relation."""
    return [(s, r, o) for s, r, o in facts] + [(o, r + num_relations, s) for s, r, o in facts]


def batch_norm(weights, channels, *, training):
    """Normalise each channel's array of samples, by their own moments in training, else by the running ones."""
    normalised = []
    for c, samples in enumerate(channels):
        mean, variance = weights["mean"][c], weights["var"][c]
        if training:
            count = samples.size
            mean = samples.sum() / count
            variance = ((samples - mean) ** 2).sum() / count
            unbiased = variance * count / max(count - 1, 1)
            weights["mean"][c] = 0.9 * weights["mean"][c] + 0.1 * mean
            weights["var"][c] = 0.9 * weights["var"][c] + 0.1 * unbiased
        normalised.append(weights["scale"][c] * (samples - mean) / math.sqrt(variance + 1e-5) + weights["bias"][c])
    return normalised


def gru(weights, x, hidden):
    """One step for one row; the gates stand in the order reset, update, new."""
    d = len(hidden)
    from_input = x @ weights["input_weight"] + weights["input_bias"]
    from_hidden = hidden @ weights["hidden_weight"] + weights["hidden_bias"]
    reset = sigmoid(from_input[:d] + from_hidden[:d])
    update = sigmoid(from_input[d : 2 * d] + from_hidden[d : 2 * d])
    new = np.tanh(from_input[2 * d :] + reset * from_hidden[2 * d :])
    return (1 - update) * new + update * hidden


def relation_context(facts, entities, num_relations, *, objects_count):
    """Mean entity of each relation and, the same, of its inverse; RE-GCN counts objects, TiRGN does not."""
    contexts = []
    for relation in range(num_relations):
        members = {s for s, r, _ in facts if r == relation}
        if objects_count:
            members |= {o for _, r, o in facts if r == relation}
        total = np.zeros(entities.shape[1])
        for entity in members:
            total = total + entities[entity]
        contexts.append(total / max(len(members), 1))
    return np.array(contexts + contexts)


def evolve_relations(weights, contexts, relations):
    """``l2(GRU([R0 ; c], R))`` for each relation; the input's first half is always the initial embedding."""
    initial, cell = weights["relation_embedding"], part(weights, "relation_gru")
    rows = [gru(cell, np.concatenate([initial[r], contexts[r]]), relations[r]) for r in range(len(relations))]
    return l2_rows(rows)


def messages(weights, edges, x, relations, *, training):
    """What each edge carries to its object."""
    subjects, kinds = np.array([x[s] for s, _, _ in edges]), np.array([relations[r] for _, r, _ in edges])
    if "mix_weight" not in weights:  # RE-GCN
        return [(h + r) @ weights["message_weight"] for h, r in zip(subjects, kinds, strict=True)]
    subjects, kinds = batch_norm(part(weights, "norm"), [subjects, kinds], training=training)
    (a, b), (c,) = weights["mix_weight"], weights["mix_bias"]
    return [(a * h + b * r + c) @ weights["message_weight"] for h, r in zip(subjects, kinds, strict=True)]


def graph_convolution(weights, facts, x, relations, *, training=False):
    """One layer: the mean of the incoming messages plus a loop; isolated entities have a loop of their own."""
    edges = both_directions(facts, len(relations) // 2)
    sent = messages(weights, edges, x, relations, training=training)
    rows = []
    for entity, own in enumerate(x):
        incoming = [message for message, (_, _, o) in zip(sent, edges, strict=True) if o == entity]
        if incoming:
            rows.append(leaky_relu(sum(incoming) / len(incoming) + own @ weights["loop_weight"]))
        else:
            rows.append(leaky_relu(own @ weights["isolated_weight"]))
    return np.array(rows)


def update_entity(weights, convolved, before):
    """RE-GCN's time gate or TiRGN's GRU, for one entity."""
    if "gate_weight" in weights:
        gate = sigmoid(before @ weights["gate_weight"] + weights["gate_bias"])
        return gate * convolved + (1 - gate) * before
    return l2(gru(part(weights, "entity_gru"), convolved, before))


def evolution_step(weights, facts, entities, relations, *, training=False):
    """Entities and relations after a snapshot; the weights are the encoder's."""
    contexts = relation_context(facts, entities, len(relations) // 2, objects_count="gate_weight" in weights)
    relations = evolve_relations(weights, contexts, relations)
    x = entities
    for layer in range(len({name.split("/")[1] for name in weights if name.startswith("layers/")})):
        x = graph_convolution(part(weights, f"layers/{layer}"), facts, x, relations, training=training)
    rows = [update_entity(weights, l2(new), old) for new, old in zip(x, entities, strict=True)]
    return np.array(rows), relations


def static_embedding(weights, entities):
    """Entities' rows of one block-diagonal R-GCN layer over entities and words, without a loop.

    The weight of a kind of edge is one 2x2 matrix for each pair of dimensions. Edges are ``(entity, kind,
    word)``, and each also leads back from the word to the entity, by a kind of its own.
    """
    blocks, forward = weights["block_weight"], weights["edges"].tolist()
    nodes = list(entities) + list(weights["word_embedding"])
    kinds = len(blocks) // 2
    edges = [(entity, kind, len(entities) + word) for entity, kind, word in forward]
    edges += [(word, kind + kinds, entity) for entity, kind, word in edges]
    rows = []
    for node in range(len(nodes)):
        incoming = [(source, kind) for source, kind, target in edges if target == node]
        total = np.zeros(entities.shape[1])
        for source, kind in incoming:
            for i in range(0, len(total), 2):
                block = blocks[kind, 2 * i : 2 * i + 4].reshape(2, 2)
                total[i : i + 2] += nodes[source][i : i + 2] @ block / len(incoming)
        rows.append(l2(leaky_relu(total)))
    return np.array(rows[: len(entities)])


def static_drift(static, entities, step, angle):
    """By how much each entity has turned from its static embedding beyond the allowed angle, in cosines, summed."""
    allowed = math.cos(math.radians(angle) * (step + 1))
    return sum(max(0, allowed - l2(s) @ l2(h)) for s, h in zip(static, entities, strict=True))


def evolve(weights, snapshots, *, angle=0, training=False):
    """Entities and relations after the snapshots, oldest first, and the static drift over all of them.

    The weights are the encoder's; without a static graph the drift is 0.
    """
    start, relations, drift = l2_rows(weights["entity_embedding"]), weights["relation_embedding"], 0.0
    static = part(weights, "static")
    if static:
        start = static_embedding(static, weights["entity_embedding"])
    entities = start
    for i, facts in enumerate(snapshots):
        entities, relations = evolution_step(weights, facts, entities, relations, training=training)
        drift += static_drift(start, entities, i, angle) if static else 0
    return (l2_rows(entities) if "gate_weight" in weights else entities), relations, drift


def convolve(kernel, bias, rows, channel):
    """Same-padded convolution of one query's input rows for one output channel."""
    width, num_inputs, _ = kernel.shape
    length = len(rows[0])
    output = []
    for position in range(length):
        total = bias[channel]
        for tap in range(width):
            source = position + tap - (width - 1) // 2
            if 0 <= source < length:
                for i in range(num_inputs):
                    total = total + kernel[tap, i, channel] * rows[i][source]
        output.append(total)
    return output


def decode(weights, inputs, *, training=False):
    """Vector of each query from its input rows; ``inputs`` holds one array [queries, d] for each channel."""
    kernel, bias = weights["conv_weight"], weights["conv_bias"]
    inputs = batch_norm(part(weights, "input_norm"), inputs, training=training)
    queries = list(zip(*inputs, strict=True))
    maps = [np.array([convolve(kernel, bias, rows, channel) for rows in queries]) for channel in range(len(bias))]
    maps = batch_norm(part(weights, "conv_norm"), maps, training=training)
    hidden = []
    for query in range(len(queries)):
        total = weights["linear_bias"]
        for channel, rows in enumerate(maps):
            for position, value in enumerate(rows[query]):
                total = total + max(value, 0) * weights["linear_weight"][position, channel]
        hidden.append(total)
    columns = batch_norm(part(weights, "output_norm"), list(np.array(hidden).T), training=training)
    return np.maximum(np.array(columns).T, 0)


def time_vectors(weights, time):
    linear = weights["linear_weight"] * time + weights["linear_bias"]
    return linear, np.sin(weights["periodic_weight"] * time + weights["periodic_bias"])


def copy_distribution(history, raw, seen, mode):
    """Distribution of the history decoder's logits under the set of candidates that a query has seen."""
    if mode == "multiply":
        return softmax(np.array([logit if i in seen else 0 for i, logit in enumerate(history)]))
    if not seen:
        return softmax(raw)
    listed = sorted(seen)
    shares = softmax(np.array([history[i] for i in listed]))
    distribution = np.zeros(len(history))
    for i, share in zip(listed, shares, strict=True):
        distribution[i] = share
    return distribution


def seen_objects(facts, subject, relation, time, *, num_relations, window=0):
    """What stood at the end of ``(subject, relation, ?)`` before a time; facts are ``(s, r, o, t)``."""
    return {o for s, r, o in _visible(facts, time, num_relations, window) if (s, r) == (subject, relation)}


def seen_relations(facts, subject, object_, time, *, num_relations, window=0):
    return {r for s, r, o in _visible(facts, time, num_relations, window) if (s, o) == (subject, object_)}


def _visible(facts, time, num_relations, window):
    first = time - window if window else -math.inf
    return both_directions([(s, r, o) for s, r, o, t in facts if first <= t < time], num_relations)


def snapshots_before(facts, time, history_length):
    """Facts of each of the last timestamps before a time, oldest first."""
    times = sorted({t for _, _, _, t in facts if t < time})[-history_length:]
    return [[(s, r, o) for s, r, o, t in facts if t == each] for each in times]


class Reference:
    """A whole network.

    Args:
        weights: arrays by the names of a checkpoint; copied.
        config: the settings of the network, by their names.
    """

    def __init__(self, weights, config):
        self.weights = {name: np.array(array) for name, array in weights.items()}
        self.config = config

    def evolve(self, facts, time, *, training=False):
        """What :func:`evolve` gives for a query of the time; facts are ``(s, r, o, t)``."""
        snapshots = snapshots_before(facts, time, self.config.history_length)
        angle = self.config.static_angle
        return evolve(part(self.weights, "encoder"), snapshots, angle=angle, training=training)

    def entity_probabilities(self, evolved, facts, queries, time, *, training=False):
        """Distribution over entities for ``(s, r, ?)`` of each query ``(s, r, o)``: [queries, n]."""
        entities, relations, _ = evolved
        subjects = np.array([np.tanh(entities[s]) for s, _, _ in queries])
        inputs = [subjects, np.array([relations[r] for _, r, _ in queries])]
        seen = [seen_objects(facts, s, r, time, **self._history()) for s, r, _ in queries]
        return self._probabilities("entity", inputs, np.tanh(entities), seen, time, training)

    def relation_probabilities(self, evolved, facts, queries, time, *, training=False):
        """Distribution over relations and inverses for ``(s, ?, o)`` of each query: [queries, 2R]."""
        entities, relations, _ = evolved
        inputs = [np.array([np.tanh(entities[query[side]]) for query in queries]) for side in (0, 2)]
        seen = [seen_relations(facts, s, o, time, **self._history()) for s, _, o in queries]
        return self._probabilities("relation", inputs, relations, seen, time, training)

    def loss(self, facts, time, queries, *, task_weight, static_weight):
        """Mean over queries ``(s, r, o)`` of both tasks' negative log-likelihoods, and the static constraint."""
        evolved = self.evolve(facts, time, training=True)
        entity = self.entity_probabilities(evolved, facts, queries, time, training=True)
        relation = self.relation_probabilities(evolved, facts, queries, time, training=True)
        total = 0.0
        for i, (_, r, o) in enumerate(queries):
            total -= task_weight * math.log(entity[i, o]) + (1 - task_weight) * math.log(relation[i, r])
        return total / len(queries) + static_weight * evolved[2]

    def _history(self):
        return {"num_relations": self.config.num_relations, "window": self.config.history_window}

    def _probabilities(self, task, inputs, candidates, seen, time, training):
        def logits(decoder, channels):
            vectors = decode(part(self.weights, decoder), channels, training=training)
            return np.array([[vector @ candidate for candidate in candidates] for vector in vectors])

        if self.config.model_type == "regcn":
            return np.array([softmax(row) for row in logits(f"{task}_decoder", inputs)])
        times = time_vectors(part(self.weights, "time_encoding"), time)
        inputs = inputs + [np.array([vector for _ in inputs[0]]) for vector in times]
        raw, history = logits(f"raw_{task}_decoder", inputs), logits(f"history_{task}_decoder", inputs)
        rate, mode = self.config.history_rate, self.config.history_mask_mode
        return np.array(
            [
                rate * copy_distribution(history[i], raw[i], seen[i], mode) + (1 - rate) * softmax(raw[i])
                for i in range(len(seen))
            ]
        )
