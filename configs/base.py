"""Every key that exists, with its unit and its reason. Other configs state only what they change.

A config is plain data: it imports nothing of posjax, loads in milliseconds and is stored beside
the run. A new key has the value that leaves all as it was without it, so that older runs are read
as they were trained. Lengths and positions are in tokens, times in optimizer steps unless a comment
differs.
"""

from ml_collections import ConfigDict


def get_config(variant: str = '') -> ConfigDict:
  """The base experiment: a small decoder without positions on the embedded corpus.

  Args:
    variant: '' for the experiment itself, 'smoke' for the same code path in seconds.
  """
  config = ConfigDict()

  config.seed = 0  # of parameters and of the order of the data
  config.init_from = None  # run directory whose parameters training starts from; or hf:DIR, a
  # checkpoint of another library, whose model, positions and tokenizer then take the place of these

  # One scheme: its name and its hyperparameters, documented in posjax/positions/<name>.py. Or
  # several, 'together' on all heads or each on 'heads' of its own: posjax/composition.py.
  config.position = ConfigDict({'name': 'none'})

  # A pattern of layers, repeated over the depth: what each sets differently, of the keys position,
  # extended, window, sinks, chunk, segment, memory, mlp, cap, null_logit and qk_norm_after. None:
  # all layers are alike.
  config.layers = None

  # Positions to train on other than 0, 1, 2, ...: a class of posjax/sampling.py and its settings.
  config.sampling = ConfigDict({'name': 'none'})

  # One context extension, applied to the scheme's spectrum during training: a function of
  # posjax/extension/ and its keywords. A run that is extended at evaluation only has 'none'.
  config.extension = ConfigDict({'name': 'none'})
  config.extension.factor = 1.0  # how many times longer than trained_length the text gets
  config.extension.trained_length = None  # tokens; None takes it from the run of init_from

  config.model = ConfigDict()
  config.model.vocabulary = None  # ids; None takes the tokenizer's size
  config.model.width = 256  # d_model
  config.model.layers = 4
  config.model.heads = 8  # query heads
  config.model.kv_heads = 8  # = heads: multi-head; 1: multi-query; between: grouped-query
  config.model.head_width = 32  # per head; independent of width / heads
  config.model.window = None  # keys a query sees, its own included; None sees all before it
  config.model.sinks = 0  # first keys of the document that it sees beyond its window
  config.model.chunk = None  # tokens; keys of other chunks of the document are not seen
  config.model.segment = None  # tokens; rows are read segment by segment, each with a ...
  config.model.memory = 0  # ... memory of so many tokens before it, which learn nothing from it
  config.model.mlp = 'gated'  # 'gated' (three matrices), 'plain' (two) or 'experts'
  config.model.activation = None  # 'silu', 'gelu', 'gelu_tanh', 'gelu_sigmoid', 'relu' or 'relu2';
  # None: silu where the MLP is gated (SwiGLU), gelu_tanh where it is plain (GPT-2's)
  config.model.gate_limit = None  # of gated MLPs: what is activated is at most this, and what it is
  # multiplied by within it of 0, plus ...
  config.model.gate_offset = 0.0  # ... this. gpt-oss: 7 and 1
  config.model.mlp_width = 688  # 8/3 of width to a multiple of 16: as many weights as plain 4x
  config.model.residual = 'sequential'  # MLP after attention; or 'parallel', both from the same
  # input, each with a norm of its own, or 'parallel_shared', with one norm for both
  config.model.norm = 'rms'  # 'rms', 'layer', or 'layer_unbiased', which adds nothing
  config.model.norm_at = 'input'  # of attention and MLP, or 'output', or 'both', or of the 'sum'
  # after each of them, as in the first Transformer, which then has no norm before the head
  config.model.norm_epsilon = None  # added to the mean square; None: rms 1e-6, layer 1e-5
  config.model.qk_norm = 'none'  # RMS norm of queries and keys before the scheme acts, of each
  # 'head' or of the 'whole' of them
  config.model.qk_norm_after = None  # epsilon of an RMS norm without scale of each head of queries
  # and keys after the scheme has acted, which undoes what scaled them (Llama 4); None: no such norm
  config.model.null_logit = False  # True: each head learns a logit that joins its softmax and has
  # no value, so that it may look at nothing (gpt-oss, whose code calls it a sink)
  config.model.attention_cap = None  # c: logits of attention become c tanh(logit / c); None: stay
  config.model.biases = ()  # where there are some: 'qkv', 'output' (of attention), 'mlp',
  # 'experts', their 'router', 'head'
  config.model.embedding_scale = None  # multiplies embedded tokens; None: sqrt(width), so that
  # they have variance 1 at the start, while the same matrix, as a head, gives such logits
  config.model.embedding_norm = False  # a norm of what enters the first layer
  config.model.logit_cap = None  # the same for the logits of the next token
  config.model.tied = False  # True: the output matrix is the embedding's transpose
  config.model.cutoffs = None  # ids at which the clusters of an adaptive softmax begin, after the
  # first one's, of the most frequent tokens; it saves no work here. None: one softmax
  config.model.dtype = 'auto'  # of activations: bfloat16 on accelerators, float32 on CPU
  config.model.remat = 'none'  # 'none', 'block' (keep layer inputs) or 'dots' (keep matmuls too)
  config.model.attention = 'auto'  # form: 'auto', 'dense', 'tiled', 'cudnn' or 'splash'

  # Of multi-head latent attention (posjax/latent.py); head_width is then the content's.
  config.model.latent = ConfigDict()
  config.model.latent.width = None  # of what is kept of a token, from which all heads' keys and
  # values are read; None: heads have keys and values of their own
  config.model.latent.query = None  # width of the queries' own latent; None: they come from x
  config.model.latent.slice = 16  # dimensions of each head on which the position scheme acts
  config.model.latent.value = None  # width of a value head; None is head_width
  config.model.latent.epsilon = None  # of the latents' norms; None: model.norm_epsilon
  config.model.latent.norm = 'rms'  # of what is kept; None where heads were converted to latents
  config.model.latent.decode = 'auto'  # form that reads a cache: 'auto', 'absorbed' or 'expanded'

  # Of layers whose mlp is 'experts' (posjax/moe.py); their experts' MLPs are gated.
  config.model.experts = ConfigDict()
  config.model.experts.count = 16  # that a layer's tokens are routed to
  config.model.experts.chosen = 3  # of them, that a token passes through
  config.model.experts.shared = 1  # that every token passes through beside them
  config.model.experts.width = 172  # of each; mlp_width = (chosen + shared) x width: equal FLOPs
  config.model.experts.scores = 'sigmoid'  # of an expert: 'sigmoid' (DeepSeek-V3), 'softmax' (V2)
  config.model.experts.weighs = 'output'  # the weight multiplies an expert's output, or its 'input'
  config.model.experts.groups = 1  # of equal size; those of one group share a node, say
  config.model.experts.groups_chosen = 1  # that a token's experts may be of
  config.model.experts.group_best = 2  # a group is worth the sum of its so many best; V2: 1
  config.model.experts.normalise = True  # the chosen experts' weights sum to 1 ...
  config.model.experts.scale = 1.0  # ... times this; V3: 2.5
  config.model.experts.form = 'auto'  # 'auto', 'dense' (the definition), 'tiled' or 'ragged'

  config.data = ConfigDict()
  config.data.name = 'sotu'  # 'sotu' (embedded), 'text' (your files), 'tfds:NAME[/CONFIG]', or
  # 'task:NAME', a task of posjax/data/tasks/, of which only the answers are learned
  config.data.task = ConfigDict()  # with 'task:': its settings, where they differ from its own
  config.data.size = None  # with 'task:': largest size trained on, in the task's unit, sizes being
  # uniform up to it; None takes the largest that rows of train.length hold
  config.data.glob = None  # with 'text': the files, one document each, e.g. '~/books/**/*.txt'
  config.data.data_dir = None  # with 'tfds:': where the prepared data set is; None: TFDS's default
  config.data.text_key = 'text'  # with 'tfds:': the feature that holds the text
  config.data.split = 'train'  # split to train on
  config.data.validation_split = 'validation'  # split to evaluate on
  config.data.validation_fraction = 0.1  # with 'text': share of documents kept for validation
  config.data.tokenizer = 'bytes'  # or a SentencePiece .model, or a Hugging Face tokenizer.json
  config.data.cache_dir = None  # where token caches go; None is ~/.cache/posjax
  config.data.positions = 'context'  # count from the first visible token, so that training never
  # sees a position >= train.length; 'document' counts from the document's start
  config.data.threads = 2  # that read ahead

  config.train = ConfigDict()
  config.train.length = 256  # tokens of a row
  config.train.batch = 16  # rows of a step, over all devices and hosts
  config.train.accumulate = 1  # parts a step's batch is cut into; memory falls, the sum is equal
  config.train.steps = 1000
  config.train.learning_rate = 3e-3  # at the peak
  config.train.schedule = 'cosine'  # 'cosine' or 'wsd' (warm-up, stable, linear decay)
  config.train.warmup = 50  # steps from 0 to the peak
  config.train.decay = 0.2  # with 'wsd': share of the steps that decay
  config.train.final = 0.1  # learning rate at the end, relative to the peak
  config.train.weight_decay = 0.1  # AdamW's, on matrices only (not on norms, biases, positions)
  config.train.b1 = 0.9
  config.train.b2 = 0.95  # shorter memory than Adam's 0.999: usual for language models
  config.train.clip = 1.0  # largest global norm of the gradient; None clips nothing
  config.train.z_loss = 0.0  # weight of log(Z)^2, which keeps logits from drifting; 1e-4 is usual
  config.train.balance_rate = 1e-3  # that experts' routing biases move by in a step: DeepSeek-V3's
  config.train.balance_loss = 0.0  # weight of each layer's load-balance loss; V3: 1e-4, V2: 3e-3
  config.train.loss_chunk = None  # tokens whose logits exist at once; None lets memory decide

  # Devices along each axis; -1 takes what is left. The product must be the number of devices.
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1})

  # Phases that follow on the same parameters: what each sets differently from the above, which is
  # the first, of train (key by key: length, batch, steps, ...), position, layers, sampling and
  # extension (whose trained_length is the first phase's). Each has a schedule over its own steps;
  # the optimizer's moments are carried over; the text goes on where the phase before stopped.
  config.phases = None

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 250  # steps; the last step of a phase is always saved, and kept
  config.checkpoint.keep = 2  # newest ones kept; two, so that a damaged one has a predecessor

  config.log = ConfigDict()
  config.log.every = 10  # steps between metric lines

  # What is evaluated when training ends: a file of configs/eval/, None for nothing.
  config.eval = 'configs/eval/lengths.py'

  return smoke(config) if variant == 'smoke' else experiment(config, variant)


def experiment(config: ConfigDict, variant: str) -> ConfigDict:
  """Returns `config` itself where no variant is asked for. Raises ValueError for an unknown one."""
  if variant not in ('', 'smoke'):
    raise ValueError(f"No variant '{variant}' of this config. Use --config=FILE or FILE:smoke.")
  return smoke(config) if variant == 'smoke' else config


def smoke(config: ConfigDict) -> ConfigDict:
  """The same experiment in seconds: the code path is the point, the numbers mean nothing."""
  config.model.width = 32
  config.model.layers = 2
  if config.layers is not None:  # each kind of layer once
    kinds = [one for n, one in enumerate(config.layers) if one not in config.layers[:n]]
    config.layers, config.model.layers = tuple(kinds), len(kinds)
  config.model.heads = 4
  config.model.kv_heads = min(config.model.kv_heads, 4)
  config.model.head_width = 8
  config.model.mlp_width = 64
  if config.model.latent.width is not None:
    config.model.latent.width, config.model.latent.slice = 16, 4
  config.model.experts.width = 16
  config.train.length = 32
  config.train.batch = 4
  config.train.steps = 6
  config.train.warmup = 2
  config.checkpoint.every = 3
  config.log.every = 2
  if config.eval is not None:
    config.eval += ':smoke'
  return config
