// What the printed loops compute of the neuron: all steps forward and backward, and smaller runs
// of them for the pictures beside it. `loops` are forward(literals, steps, x, params, start, output,
// record) and backward(literals, steps, x, params, start, record, dOutput, dRecord, dX, dParams, dStart,
// slope), where `slope` is the derivative of the spike function.
const numbers = (list) => list.map((n) => n === "inf" ? Infinity : n === "-inf" ? -Infinity : +n);
const printed = (each) => each && { loop: loops[each[0]], literals: numbers(each[1]) };

function variant() {
  const { choices, slopes, variants } = current();
  let place = 0, which = 0; // the last choice varies fastest
  for (const choice of choices) {
    if (choice.name === "surrogate") which = choiceOf(choice);
    else place = place * choice.labels.length + choiceOf(choice);
  }
  const [forward, backward, literals, moving, before] = variants[place], bump = printed(slopes[which] ?? null);
  return { forward: loops[forward], backward: loops[backward], literals: numbers(literals), moving: moving.map(printed), before: printed(before), bump, slope: bump && slopeOf(bump) };
}

function slopeOf({ loop, literals }) {
  const x = [0], one = [1], slope = [0];
  return (u) => {
    x[0] = u;
    loop(literals, 1, x, [], [], [], one, [], slope, [], []);
    return slope[0];
  };
}

// Some initial states follow a parameter of the constructor, once the page has changed it.
const startOf = (neuron) => neuron.start.map((start, k) => {
  if (!neuron.follows[k]) return start;
  const [name, factor] = neuron.follows[k], param = neuron.params.find((each) => each.name === name);
  return changedOf(param) === undefined ? start : factor * value(param);
});

let run, ghost = null, kept = null; // `ghost`: the run before the last change; `kept`: A, beside which all others are B
function compute() {
  const steps = stepCount(), { target, pair, shown } = settings;
  target.step = Math.min(target.step, steps - 1);
  if (pair) {
    const both = [0, 1].map((place) => onSide(place, () => emptyRun(steps)));
    // into the first neuron, and into the second
    const weights = [pair.w21, pair.w12];
    forwardTogether(both, weights, steps);
    run = both[shown];
    differentiate(run, steps);
    run.dWeights = backwardTogether(both, weights, steps);
    run.other = both[1 - shown];
  } else {
    run = emptyRun(steps);
    const { now, x, params, start, output, record } = run;
    now.forward(now.literals, steps, x, params, start, output, record);
    differentiate(run, steps);
    now.backward(now.literals, steps, x, params, start, record, run.dOutput, run.dRecord, run.dX, run.dParams, start.map(() => 0), now.slope);
  }
  const { neuron, now, total, params, start } = run, zeros = () => new Float64Array(steps);
  // where it fires: a parameter, or what its own loop computes at every step
  const beside = (each) => {
    const line = zeros();
    each.loop(each.literals, steps, total, params, start, line, neuron.states.map(zeros));
    return line;
  };
  run.lines = neuron.lines.map(({ param }, k) => param === null ? beside(now.moving[k]) : zeros().fill(params[param]));
  run.before = now.before ? beside(now.before) : null; // the membrane before its reset
  run.rates = neuron.spiking ? rates() : null;
}

// What a run will hold. `x` is the input, `total` with what comes from the other neuron.
function emptyRun(steps) {
  const neuron = current(), zeros = () => new Float64Array(steps), params = neuron.params.map(value);
  const x = Float64Array.from(inputs(), (each) => neuron.unit * each);
  return {
    neuron, now: variant(), x, total: x, params, start: startOf(neuron), output: zeros(), record: neuron.states.map(zeros),
    dOutput: zeros(), dRecord: neuron.states.map(zeros), dX: zeros(), dParams: params.map(() => 0), other: null,
  };
}

// what comes back to the output or the state that is differentiated
function differentiate({ neuron, dOutput, dRecord }) {
  const { of, all, step } = settings.target, chosen = of === "output" ? dOutput : dRecord[neuron.states.indexOf(of)];
  if (all) chosen.fill(1); else chosen[step] = 1;
}

// Two neurons step by step: either gets the other's output of the step before, times a weight, as in
// an snn.Recurrent.
function forwardTogether(both, weights, steps) {
  let outputs = [0, 0];
  const states = both.map((each) => each.start);
  for (const each of both) each.total = new Float64Array(steps);
  for (let t = 0; t < steps; t++) {
    outputs = both.map(({ now, x, total, params, output, record }, k) => {
      total[t] = x[t] + weights[k] * outputs[1 - k];
      const made = [0], next = record.map(() => [0]);
      now.forward(now.literals, 1, [total[t]], params, states[k], made, next);
      states[k] = next.map(([value], i) => record[i][t] = value);
      return output[t] = made[0];
    });
  }
}

// The same backward: what comes back to the input of one is of the other's output a step before.
// Returned are the gradients of the weights.
function backwardTogether(both, weights, steps) {
  const dWeights = [0, 0];
  let later = [0, 0], carried = both.map(({ start }) => start.map(() => 0));
  for (let t = steps - 1; t >= 0; t--) {
    const back = both.map(({ now, total, params, start, record, dOutput, dRecord, dX, dParams }, k) => {
      const before = t ? record.map((each) => each[t - 1]) : start, here = record.map((each) => [each[t]]);
      const dHere = dRecord.map((each, i) => [each[t] + carried[k][i]]), dStart = start.map(() => 0), dNow = [0], sums = params.map(() => 0);
      now.backward(now.literals, 1, [total[t]], params, before, here, [dOutput[t] + weights[1 - k] * later[1 - k]], dHere, dNow, sums, dStart, now.slope);
      dX[t] = dNow[0];
      sums.forEach((each, i) => { dParams[i] += each; });
      if (t) dWeights[k] += dNow[0] * both[1 - k].output[t - 1];
      return [dNow[0], dStart];
    });
    later = back.map(([each]) => each);
    carried = back.map(([, each]) => each);
  }
  return dWeights;
}

const spikesOf = (output) => output.reduce((count, value) => count + Math.abs(value), 0);

// The spikes of constant inputs, each a run of its own: the f-I curve.
function rates() {
  const { neuron, now, params, start } = run, { steps } = neuron, points = 41;
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
