"""What CAMEO codes mean, by base code: the verb phrases of the codebook, shortened."""

_BASES = {
    "01": "make a statement|decline to comment|comment pessimistically|comment optimistically|consider a policy option|"
    "claim responsibility|deny responsibility|make a symbolic act|comment with empathy|express accord",
    "02": "appeal|appeal for material cooperation|appeal for diplomatic cooperation|appeal for aid|"
    "appeal for political reform|appeal to yield|appeal to others to meet|appeal to others to settle a dispute|"
    "appeal for mediation",
    "03": "intend to cooperate|intend material cooperation|intend diplomatic cooperation|intend to give aid|"
    "intend political reform|intend to yield|intend to meet or negotiate|intend to settle a dispute|"
    "intend to accept mediation|intend to mediate",
    "04": "consult|discuss by telephone|make a visit|host a visit|meet at a third place|mediate|negotiate",
    "05": "cooperate diplomatically|praise or endorse|defend verbally|rally support for|recognise diplomatically|"
    "apologise|forgive|sign an agreement",
    "06": "cooperate materially|cooperate economically|cooperate militarily|cooperate in justice|share intelligence",
    "07": "provide aid|provide economic aid|provide military aid|provide humanitarian aid|provide protection|"
    "grant asylum",
    "08": "yield|ease administrative sanctions|ease dissent|accede to political reform|return or release|"
    "ease economic sanctions|allow international involvement|de-escalate militarily",
    "09": "investigate|investigate crime|investigate human rights|investigate military action|investigate war crimes",
    "10": "demand|demand material cooperation|demand diplomatic cooperation|demand aid|demand political reform|"
    "demand to yield|demand a meeting|demand to settle a dispute|demand mediation",
    "11": "disapprove|criticise or denounce|accuse|rally opposition against|complain officially|sue|find guilty",
    "12": "reject|reject cooperation|reject a request for aid|reject political reform|refuse to yield|"
    "reject a meeting|reject mediation|reject a settlement|defy norms or law|veto",
    "13": "threaten|threaten without force|threaten administrative sanctions|threaten dissent|"
    "threaten to halt negotiations|threaten to halt mediation|threaten to halt involvement|threaten repression|"
    "threaten military force|give an ultimatum",
    "14": "protest|demonstrate|go on hunger strike|strike or boycott|obstruct or block|riot",
    "15": "exhibit force|raise police alert|raise military alert|mobilise police|mobilise armed forces|"
    "mobilise cyber forces",
    "16": "reduce relations|reduce diplomatic relations|reduce aid|impose an embargo|halt negotiations|halt mediation|"
    "expel or withdraw",
    "17": "coerce|seize or damage property|impose administrative sanctions|arrest or detain|expel individuals|"
    "repress violently|attack in cyberspace",
    "18": "use violence|abduct or take hostage|assault physically|bomb|use as human shield|attempt to assassinate|"
    "assassinate",
    "19": "fight|impose a blockade|occupy territory|fight with small arms|fight with artillery|attack from the air|"
    "violate a ceasefire",
    "20": "use mass violence|expel en masse|kill en masse|cleanse ethnically|use weapons of mass destruction",
}
MEANINGS = {f"{root}{i}": text for root, texts in _BASES.items() for i, text in enumerate(texts.split("|"))}


def relation_meaning(kind: str, label: str) -> str | None:
    """What a relation's label of a kind of GDELT column means; None for labels of another source."""
    if kind == "given":
        return None
    return meaning(label.partition("_")[0])  # event-quad has the quad class behind the code


def meaning(code: str) -> str:
    """What an event, base or root code means; a longer code means what its base does."""
    return MEANINGS[code[:3] if len(code) > 2 else f"{code}0"]
