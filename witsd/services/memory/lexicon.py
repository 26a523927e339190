"""What is known of English beforehand: words that say nothing, and forms that no stemmer brings together."""

from __future__ import annotations


def _bases(groups: str) -> dict[str, str]:
    return {form: base for base, *forms in (group.split() for group in groups.split(";")) for form in forms}


#: Left out of a question; a record keeps them. Pieces of contractions ("don't" is "don" and "t") are among them.
STOP_WORDS = frozenset(
    str.split(
        """
        a about above according after again against ago all also although am an and any anybody anyone anything are
        aren around as at be became because been before being below between both but by can cannot could couldn did
        didn do does doesn doing don done down during each either else ever every everybody everyone everything few
        for from further get gets getting give given go goes going gonna got gotten had hadn has hasn have haven
        having he her here hers herself him himself his how however i if in into is isn it its itself just kind know
        known let like ll lot made make makes making many may maybe me mention mentioned might more most much must
        mustn my myself need neither no nobody none nor not nothing now of off often oh ok okay on once only onto or
        other others ought our ours ourselves out over own per perhaps please put quite rather re really s said same
        say says shall shan she should shouldn since so some somebody someone something somewhere still such t take
        taken tell than that the their theirs them themselves then there these they thing things this those though
        through thus till to told too toward towards un under until up upon us use used using ve very via was wasn we
        well were weren what whatever when whenever where wherever whether which whichever while who whoever whole
        whom whose why will with within without won would wouldn yeah yes yet you your yours yourself yourselves
        """
    )
)

#: Form -> the one under which it is filed: "bought" -> "buy". Regular endings are the stemmer's.
BASE_FORMS = _bases(
    """
    arise arose arisen; awake awoke awoken; beat beaten; become became; begin began begun; bend bent; bet; bite bit
    bitten; bleed bled; blow blew blown; break broke broken; breed bred; bring brought; build built; burn burnt; buy
    bought; catch caught; choose chose chosen; come came; cost; creep crept; deal dealt; dig dug; draw drew drawn;
    dream dreamt; drink drank drunk; drive drove driven; eat ate eaten; fall fell fallen; feed fed; feel felt; fight
    fought; find found; flee fled; fly flew flown; forbid forbade forbidden; forget forgot forgotten; forgive forgave
    forgiven; freeze froze frozen; grow grew grown; hang hung; hear heard; hide hid hidden; hold held; keep kept;
    kneel knelt; lay laid; lead led; lean leant; leap leapt; learn learnt; leave left; lend lent; lie lain; light lit;
    lose lost; mean meant; meet met; overcome overcame; pay paid; ride rode ridden; ring rang rung; rise rose risen;
    run ran; see saw seen; seek sought; sell sold; send sent; sew sewn; shake shook shaken; shine shone; shoot shot;
    show shown; shrink shrank shrunk; sing sang sung; sink sank sunk; sit sat; sleep slept; slide slid; smell smelt;
    speak spoke spoken; speed sped; spell spelt; spend spent; spill spilt; spin spun; spoil spoilt; stand stood; steal
    stole stolen; stick stuck; sting stung; strike struck; strive strove striven; swear swore sworn; sweep swept;
    swell swollen; swim swam swum; swing swung; teach taught; tear tore torn; think thought; throw threw thrown;
    undergo underwent undergone; understand understood; wake woke woken; wear wore worn; weave wove woven; weep wept;
    win; wind wound; write wrote written; man men; woman women; person people; foot feet; tooth teeth; mouse mice;
    goose geese; wife wives; knife knives; leaf leaves; shelf shelves; wolf wolves; half halves; loaf loaves; thief
    thieves; mum mums mom moms mommy mummy mother mothers; dad dads daddy father fathers; grandma grandmother granny
    nana; grandpa grandfather granddad; bike bicycle bicycles; tv television; phone telephone; photo photograph
    photographs picture pictures pic pics; fridge refrigerator; gym gymnasium; exam examination; vet veterinarian; uni
    university; colour color; favourite favorite; kid kids kiddo; child children
    """
)
