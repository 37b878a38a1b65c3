// What the printed loops compute of the neuron: all steps forward and backward, and smaller runs
// of them for the pictures beside it. `loops` are forward(literals, steps, x, params, start, output,
// record) and backward(literals, steps, x, params, start, record, dOutput, dRecord, dX, dParams, dStart).
const numbers = (list) => list.map((n) => n === "inf" ? Infinity : n === "-inf" ? -Infinity : +n);
const printed = (each) => each && { loop: loops[each[0]], literals: numbers(each[1]) };

function variant() {
  let place = 0; // the last choice varies fastest
  for (const choice of current().choices) place = place * choice.labels.length + choiceOf(choice);
  const [forward, backward, literals, moving, before, bump] = current().variants[place];
  return { forward: loops[forward], backward: loops[backward], literals: numbers(literals), moving: moving.map(printed), before: printed(before), bump: printed(bump) };
}

// Some initial states follow a parameter of the constructor, once the page has changed it.
const startOf = (neuron) => neuron.start.map((start, k) => {
  if (!neuron.follows[k]) return start;
  const [name, factor] = neuron.follows[k], param = neuron.params.find((each) => each.name === name);
  return changedOf(param) === undefined ? start : factor * value(param);
});

let run, ghost = null, kept = null; // `ghost`: the run before the last change; `kept`: A, beside which all others are B
function compute() {
  const neuron = current(), steps = neuron.steps, zeros = () => new Float64Array(steps);
  const { of, all } = settings.target, step = Math.min(settings.target.step, steps - 1);
  settings.target.step = step;
  const x = Float64Array.from(inputOf(input(), steps), (each) => neuron.unit * each);
  const params = neuron.params.map(value), start = startOf(neuron), now = variant();
  const output = zeros(), record = neuron.states.map(zeros);
  const dOutput = zeros(), dRecord = neuron.states.map(zeros), dX = zeros();
  const dParams = params.map(() => 0), dStart = start.map(() => 0);
  now.forward(now.literals, steps, x, params, start, output, record);
  const chosen = of === "output" ? dOutput : dRecord[neuron.states.indexOf(of)];
  if (all) chosen.fill(1); else chosen[step] = 1;
  now.backward(now.literals, steps, x, params, start, record, dOutput, dRecord, dX, dParams, dStart);
  // where it fires: a parameter, or what its own loop computes at every step
  const beside = (each) => {
    const line = zeros();
    each.loop(each.literals, steps, x, params, start, line, neuron.states.map(zeros));
    return line;
  };
  const lines = neuron.lines.map(({ param }, k) => param === null ? beside(now.moving[k]) : zeros().fill(params[param]));
  const before = now.before ? beside(now.before) : null; // the membrane before its reset
  run = { neuron, now, x, params, start, output, record, dX, dParams, lines, before };
  run.rates = neuron.spiking ? rates() : null;
}

const spikesOf = (output) => output.reduce((count, value) => count + Math.abs(value), 0);

// The spikes of constant inputs, each a run of its own: the f-I curve.
function rates() {
  const { neuron, now, params, start } = run, steps = neuron.steps, points = 41;
  const most = Math.max(1, 1.5 * Math.abs(input().amplitude)), low = neuron.lines.length > 1 ? -most : 0;
  const output = new Float64Array(steps), record = neuron.states.map(() => new Float64Array(steps));
  return Array.from({ length: points }, (_, k) => {
    const amplitude = low + (most - low) * k / (points - 1);
    const x = new Float64Array(steps).fill(neuron.unit * amplitude).fill(0, 0, ONSET);
    now.forward(now.literals, steps, x, params, start, output, record);
    return { amplitude, rate: 100 * spikesOf(output) / (steps - ONSET) };
  });
}

// The states that make a plane, if there are two.
const planeOf = (neuron) => neuron.shown.length === 2 ? neuron.shown.map((name) => neuron.states.indexOf(name)) : null;

// What one step does to the two states of a plane from (p, q), under one input, and its output.
function moveFrom(p, q, x) {
  const { neuron, now, params } = run, [first, second] = planeOf(neuron), start = [...run.start];
  start[first] = p; start[second] = q;
  const record = neuron.states.map(() => [0]), output = [0];
  now.forward(now.literals, 1, [x], params, start, output, record);
  return [record[first][0] - p, record[second][0] - q, output[0]];
}

// The derivative of the spike function at each value of a membrane, beside a line of the neuron.
function bumpAt(values, level, sign) {
  const { bump } = run.now, count = values.length, zeros = () => new Float64Array(count);
  const x = Float64Array.from(values, (each) => sign * (each - level)), slopes = zeros();
  bump.loop(bump.literals, count, x, [], [], [], zeros().fill(1), [], slopes, [], []);
  return slopes;
}
