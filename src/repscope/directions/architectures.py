"""Names of architectures in llama.cpp (in control vectors) and in transformers (`model_type`).

llama.cpp has one name for networks with the same computation, transformers often several: Mistral and Mixtral are "llama" in
llama.cpp. `LLAMA_CPP` is the table; names missing from it are compared literally.
"""

#: architecture in llama.cpp's words → `model_type`s of transformers; a name that both share stands here where there are others too
LLAMA_CPP: dict[str, tuple[str, ...]] = {
    "llama": ("llama", "mistral", "mixtral", "ministral", "cwm", "iquestcoder", "hyperclovax", "internlm3"),
    "llama4": ("llama4", "llama4_text"),
    "llama-embed": ("llama",),
    "deci": ("nemotron-nas",),
    "mistral3": ("mistral3", "ministral3", "mistral"),
    "mistral4": ("mistral4",),
    "falcon-h1": ("falcon_h1",),
    "gptneox": ("gpt_neox",),
    "starcoder": ("gpt_bigcode",),
    "refact": ("gpt_refact",),
    "bert": ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet"),
    "modern-bert": ("modernbert",),
    "nomic-bert": ("nomic_bert",),
    "nomic-bert-moe": ("nomic_bert",),
    "neo-bert": ("neobert",),
    "jina-bert-v2": ("bert",),
    "jina-bert-v3": ("jina_embeddings_v3", "xlm-roberta"),
    "qwen2": ("qwen2", "qwen2_audio"),
    "qwen2moe": ("qwen2_moe",),
    "qwen2vl": ("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_5_omni", "qwen2_5_omni_text"),
    "qwen3moe": ("qwen3_moe",),
    "qwen3next": ("qwen3_next",),
    "qwen3vl": ("qwen3_vl", "qwen3_vl_text"),
    "qwen3vlmoe": ("qwen3_vl_moe", "qwen3_vl_moe_text", "qwen3_omni_moe", "qwen3_omni_moe_text"),
    "qwen35": ("qwen3_5", "qwen3_5_text"),
    "qwen35moe": ("qwen3_5_moe", "qwen3_5_moe_text"),
    "phi2": ("phi",),
    "phi3": ("phi3", "phi4_multimodal"),
    "internlm2": ("internlm2",),
    "gemma": ("gemma",),
    "gemma3": ("gemma3", "gemma3_text"),
    "gemma3n": ("gemma3n", "gemma3n_text"),
    "gemma4": ("gemma4", "gemma4_text"),
    "gemma-embedding": ("gemma3_text",),
    "rwkv6": ("rwkv6",),
    "mamba": ("mamba", "falcon_mamba"),
    "command-r": ("cohere",),
    "cohere2": ("cohere2", "cohere2_vision"),
    "olmo2": ("olmo2", "olmo3"),
    "deepseek": ("deepseek",),
    "deepseek2": ("deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite", "youtu"),
    "deepseek2-ocr": ("deepseek_ocr2", "deepseek_ocr2_text", "deepseek_vl_v2"),
    "chatglm": ("chatglm", "glm"),
    "glm4": ("glm4", "glm4v", "glm4v_text"),
    "glm4moe": ("glm4_moe", "glm4v_moe", "glm4v_moe_text"),
    "glm-dsa": ("glm_moe_dsa",),
    "t5": ("t5", "mt5", "umt5"),
    "t5encoder": ("t5", "mt5", "umt5"),
    "nemotron_h_moe": ("nemotron_h",),
    "exaone4": ("exaone4", "exaone4_5"),
    "exaone-moe": ("exaone_moe",),
    "granite": ("granite",),
    "granitemoe": ("granitemoe", "granitemoeshared"),
    "granitehybrid": ("granitemoehybrid", "bamba"),
    "ernie4_5-moe": ("ernie4_5_moe",),
    "hunyuan-moe": ("hunyuan_v1_moe",),
    "hunyuan-dense": ("hunyuan_v1_dense",),
    "hunyuan_vl": ("hunyuan_vl", "hunyuan_vl_text"),
    "gpt-oss": ("gpt_oss",),
    "lfm2": ("lfm2", "lfm2_vl"),
    "lfm2moe": ("lfm2_moe",),
    "llada-moe": ("llada_moe",),
    "minimax-m2": ("minimax_m2",),
    "pangu-embedded": ("pangu_embedded",),
    "paddleocr": ("paddleocr_vl", "paddleocr_vl_text"),
    "mimo2": ("mimo_v2_flash",),
    "step35": ("step3p5",),
    "kimi-linear": ("kimi_linear",),
}


def agree(hint: str, model_type: str) -> bool:
    """Whether this `model_type` is of the architecture `hint`, a name in llama.cpp or transformers.

    >>> agree("llama", "mistral"), agree("gemma3", "gemma3_text"), agree("qwen2", "llama"), agree("mistral", "llama")
    (True, True, False, False)
    """
    known = (hint, *LLAMA_CPP.get(hint.strip().casefold(), ()))
    return _plain(model_type) in map(_plain, known)


def _plain(name: str) -> str:
    """A name in normalised spelling; transformers calls the text part of a larger network `NAME_text`."""
    bare = name.strip().casefold().replace("-", "").replace("_", "").replace(".", "")
    return bare.removesuffix("text")
