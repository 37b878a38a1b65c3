// A network over time. Neurons run the loops that were printed of their steps; the products between
// them, the loss and the optimizer are here. A lane is one neuron of one sample with all its steps:
// lanes lie in the order [sample][neuron], and each is handed to the loops as it is.
function lanesOf(count, steps) {
  const all = new Float64Array(count * steps);
  return Array.from({ length: count }, (_, k) => all.subarray(k * steps, (k + 1) * steps));
}

// What the optimizer moves, or leaves alone: values, their gradient, and Adam's two means.
const tensorOf = ({ name, values, learned }) => ({
  name, learned, values: Float64Array.from(values), gradient: new Float64Array(values.length),
  first: new Float64Array(values.length), second: new Float64Array(values.length),
});
const at = (tensor, neuron) => tensor.values.length === 1 ? 0 : neuron; // one value may serve all

function networkOf(described) {
  const numbers = (list) => list.map((n) => n === "inf" ? Infinity : n === "-inf" ? -Infinity : +n);
  const printed = ([place, literals]) => ({ loop: loops[place], literals: numbers(literals) });
  const layers = described.map((layer) => ({
    ...layer,
    tensors: layer.tensors.map(tensorOf),
    literals: numbers(layer.literals ?? []),
    forward: loops[layer.forward], backward: loops[layer.backward],
    distances: (layer.distances ?? []).map(printed), bump: layer.bump ? printed(layer.bump) : null,
  }));
  return { layers, learned: layers.flatMap(({ tensors }) => tensors.filter((each) => each.learned)), updates: 0 };
}

// Where a batch is computed: of each layer the outputs, the states, and the gradient of the output.
function memoryOf({ layers }, batch, steps, trains) {
  const places = layers.map((layer) => {
    const count = batch * layer.size, states = (layer.states ?? []).map(() => lanesOf(count, steps));
    return {
      output: lanesOf(count, steps), gradient: trains ? lanesOf(count, steps) : null,
      record: Array.from({ length: count }, (_, lane) => states.map((each) => each[lane])),
    };
  });
  return { batch, steps, places, input: trains ? lanesOf(batch * layers[0].inputs, steps) : null };
}

// y = weight x + bias at every step; the lanes of one sample follow each other
function product({ tensors: [weight, bias], inputs, size }, { batch, steps }, x, y) {
  for (let b = 0; b < batch; b++) for (let o = 0; o < size; o++) {
    const out = y[b * size + o].fill(bias ? bias.values[o] : 0);
    for (let i = 0; i < inputs; i++) {
      const w = weight.values[o * inputs + i], from = x[b * inputs + i];
      for (let t = 0; t < steps; t++) out[t] += w * from[t];
    }
  }
}

function productBackward({ tensors: [weight, bias], inputs, size }, { batch, steps }, x, dY, dX) {
  for (const lane of dX) lane.fill(0);
  for (let b = 0; b < batch; b++) for (let o = 0; o < size; o++) {
    const slope = dY[b * size + o];
    for (let i = 0; i < inputs; i++) {
      const w = weight.values[o * inputs + i], from = x[b * inputs + i], back = dX[b * inputs + i];
      let sum = 0;
      for (let t = 0; t < steps; t++) { sum += slope[t] * from[t]; back[t] += w * slope[t]; }
      weight.gradient[o * inputs + i] += sum;
    }
    if (bias) for (let t = 0; t < steps; t++) bias.gradient[o] += slope[t];
  }
}

// The parameters and the initial states of each neuron, as the printed loops take them.
const given = ({ tensors, size, start }) => Array.from({ length: size }, (_, n) =>
  [tensors.map((each) => each.values[at(each, n)]), start.map((each) => each[each.length === 1 ? 0 : n])]);

function forwardPass(network, memory, x) {
  for (const [k, layer] of network.layers.entries()) {
    const { output, record } = memory.places[k];
    if (layer.kind === "linear") product(layer, memory, x, output);
    else {
      const all = given(layer);
      for (let lane = 0; lane < output.length; lane++) {
        layer.forward(layer.literals, memory.steps, x[lane], ...all[lane % layer.size], output[lane], record[lane]);
      }
    }
    x = output;
  }
  return x;
}

// From the gradients of the last layer's outputs to those of all that is learned.
function backwardPass(network, memory, x) {
  for (const { gradient } of network.learned) gradient.fill(0);
  for (let k = network.layers.length - 1; k >= 0; k--) {
    const layer = network.layers[k], { record, gradient } = memory.places[k];
    const from = k ? memory.places[k - 1].output : x, back = k ? memory.places[k - 1].gradient : memory.input;
    if (layer.kind === "linear") { productBackward(layer, memory, from, gradient, back); continue; }
    const all = given(layer), nothing = layer.states.map(() => new Float64Array(memory.steps));
    const slopes = layer.tensors.map(() => 0), first = layer.states.map(() => 0);
    for (let lane = 0; lane < gradient.length; lane++) {
      const n = lane % layer.size;
      layer.backward(layer.literals, memory.steps, from[lane], ...all[n], record[lane], gradient[lane], nothing, back[lane], slopes, first);
      layer.tensors.forEach((each, p) => { each.gradient[at(each, n)] += slopes[p]; });
    }
  }
}

// How far each neuron is from its nearest threshold at every step, before its reset: above 0 it fires.
function distancesOf(layer, steps, x) {
  const all = given(layer), scratch = layer.states.map(() => new Float64Array(steps));
  const far = ({ loop, literals }) => x.map((lane, n) => {
    const found = new Float64Array(steps);
    loop(literals, steps, lane, ...all[n], found, scratch);
    return found;
  });
  return layer.distances.map(far).reduce((nearest, other) => nearest.map((lane, n) => lane.map((u, t) => Math.max(u, other[n][t]))));
}

// What stands in for the derivative of a spike, at these distances.
function bumpAt({ bump: { loop, literals } }, distances) {
  const count = distances.length, slopes = new Float64Array(count);
  loop(literals, count, Float64Array.from(distances), [], [], [], new Float64Array(count).fill(1), [], slopes, [], []);
  return slopes;
}

// What the network says of each sample: the mean of its outputs over time, as many as classes.
function meansOf(outputs, classes) {
  const means = Float64Array.from(outputs, (lane) => lane.reduce((sum, each) => sum + each, 0) / lane.length);
  return Array.from({ length: means.length / classes }, (_, b) => means.subarray(b * classes, (b + 1) * classes));
}

const winner = (scores) => scores.reduce((best, score, k) => score > scores[best] ? k : best, 0);
function softmax(scores) {
  const most = Math.max(...scores), powers = Float64Array.from(scores, (score) => Math.exp(score - most));
  const sum = powers.reduce((total, each) => total + each, 0);
  return powers.map((each) => each / sum);
}

// Cross entropy of the means over time, averaged over the samples; `gradient` takes its derivative.
function crossEntropy(outputs, labels, classes, gradient) {
  let loss = 0, right = 0;
  for (const [b, scores] of meansOf(outputs, classes).entries()) {
    const shares = softmax(scores);
    loss -= Math.log(shares[labels[b]]) / labels.length;
    right += winner(scores) === labels[b];
    for (let c = 0; c < classes; c++) {
      const lane = gradient[b * classes + c];
      lane.fill((shares[c] - (c === labels[b])) / labels.length / lane.length);
    }
  }
  return { loss, right: right / labels.length };
}

// One update by Adam, with the constants that PyTorch has by default.
function adam(network, rate) {
  const step = ++network.updates, [keep, keepSquare] = [0.9, 0.999];
  const rated = rate / (1 - keep ** step), root = Math.sqrt(1 - keepSquare ** step);
  for (const { values, gradient, first, second } of network.learned) {
    for (let k = 0; k < values.length; k++) {
      first[k] += (1 - keep) * (gradient[k] - first[k]);
      second[k] = keepSquare * second[k] + (1 - keepSquare) * gradient[k] * gradient[k];
      values[k] -= rated * first[k] / (Math.sqrt(second[k]) / root + 1e-8);
    }
  }
}

// Forward, loss, backward, update; the loss is that before the update.
function trainOnce(network, memory, x, labels, rate) {
  const outputs = forwardPass(network, memory, x), classes = network.layers.at(-1).size;
  const found = crossEntropy(outputs, labels, classes, memory.places.at(-1).gradient);
  backwardPass(network, memory, x);
  adam(network, rate);
  return found;
}
