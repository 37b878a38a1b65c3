// Networks of a chosen width, depth and half-life. Neurons are those that were described, with their
// printed loops; weights are drawn as nn.Linear draws them, from a seed of the page.
const isRegular = ({ layers }) => layers.length >= 4 && layers.length % 2 === 0
  && layers.every(({ kind }, k) => (kind === "linear") === (k % 2 === 0))
  && layers.slice(0, -2).every(({ size, title, call }, k) => size === layers[0].size && size > 1
    && (k % 2 === 0 || (title === layers[1].title && call.fixed[0] === String(size))));
// decays by their names, of hidden neurons
const decaysOf = (net) => isRegular(net) ? net.layers[1].decays : [];
const net = () => networks[settings.net];
const widthOf = () => settings.width ?? net().layers[0].size;
const depthOf = () => settings.depth ?? net().layers.length / 2 - 1;
const halflifeOf = (raw) => Math.LN2 / Math.log1p(Math.exp(-raw)); // of the decay sigmoid(raw)
const rawOf = (halflife) => -Math.log(Math.expm1(Math.LN2 / halflife));

function drawn(layer, inputs, size, uniform) {
  const most = 1 / Math.sqrt(inputs), count = { weight: inputs * size, bias: size };
  const tensors = layer.tensors.map((each) => ({ ...each, values: Array.from({ length: count[each.name] }, () => most * (2 * uniform() - 1)) }));
  return { ...layer, inputs, size, tensors, title: `Linear(${inputs}, ${size})` };
}

// Neurons of the same values, again and again.
function resized(layer, size) {
  const fit = (values) => values.length === 1 ? values : Array.from({ length: size }, (_, n) => values[n % values.length]);
  return {
    ...layer, size, inputs: size, start: layer.start.map(fit), tensors: layer.tensors.map((each) => ({ ...each, values: fit(each.values) })),
    title: layer.title.replace(`(${layer.size}`, `(${size}`), call: { ...layer.call, fixed: [String(size), ...layer.call.fixed.slice(1)] },
  };
}

function withHalflives(layer) {
  const raw = (name) => settings.halflives[name.replace("raw_", "")];
  const tensors = layer.tensors.map((each) => raw(each.name) === undefined ? each : { ...each, values: each.values.map(() => rawOf(raw(each.name))) });
  return { ...layer, tensors };
}

// The layers of the network that the settings describe.
function chosenLayers() {
  const { layers } = net(), width = widthOf(), depth = depthOf();
  if (!isRegular(net())) return layers;
  let chosen = layers;
  if (width !== layers[0].size || depth !== layers.length / 2 - 1 || settings.weights) {
    const uniform = uniformsOf(settings.weights), [last, output] = layers.slice(-2);
    const hidden = Array.from({ length: depth }, (_, k) => [drawn(layers[0], k ? width : features, width, uniform), resized(layers[1], width)]);
    chosen = [...hidden.flat(), drawn(last, width, classes, uniform), output].map((layer, k) => ({ ...layer, name: String(k) }));
  }
  return chosen.map((layer, k) => layer.kind === "neuron" && k < chosen.length - 1 ? withHalflives(layer) : layer);
}

// The Python that makes and trains such a network; its weights are other ones.
function python(layers) {
  const halflives = Object.entries(settings.halflives).map(([name, shown]) => `${name}=tt.functional.halflife_to_decay(${shown})`);
  const neuron = ({ call: { name, fixed } }, inner) => {
    const kept = fixed.filter((text) => !inner || !(text.split("=")[0] in settings.halflives));
    return `${name}(${[...kept, ...(inner ? halflives : [])].join(", ")})`;
  };
  const bias = ({ tensors }) => tensors.length < 2 ? ", bias=False" : "";
  const lines = layers.map((layer, k) => layer.kind === "linear" ? `    nn.Linear(${layer.inputs}, ${layer.size}${bias(layer)}),` : `    ${neuron(layer, k < layers.length - 1)},`);
  const model = ["model = nn.Sequential(", ...lines, ")"];
  if (!sets.length) return model.join("\n");
  return [
    ...model,
    `optimizer = torch.optim.Adam(model.parameters(), lr=${settings.rate})`,
    "for _ in range(updates):",
    "    y = tt.unroll(model, x, from_rest=True)",
    "    loss = nn.functional.cross_entropy(y.mean(0), labels)",
    "    optimizer.zero_grad()", "    loss.backward()", "    optimizer.step()",
  ].join("\n");
}
