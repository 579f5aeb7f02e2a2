"""A graph of news articles, each joined to those whose words are most like its own."""

from __future__ import annotations

import torch

from thrifty.core.seeding import generator
from thrifty.data.text import texts
from thrifty.shrink.graph_space import Graph


def news_graph(nodes: int, features: int, neighbours: int, seed: int) -> Graph:
    """Articles of ``bbc-news`` drawn at random, their words as features and their topics as classes.

    Parameters
    ----------
    nodes
        How many articles.
    features
        How many words: the most frequent ones, weighted by how rare they are (tf-idf).
    neighbours
        Each article is joined to so many others, those with the largest cosine, and to those that are joined to it.
    seed
        Of the draw.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    news = texts("bbc-news")
    drawn = torch.randperm(len(news.train_texts), generator=generator(seed, "news graph"))[:nodes].tolist()
    words = TfidfVectorizer(max_features=features, stop_words="english", sublinear_tf=True)
    found = words.fit_transform([news.train_texts[row] for row in drawn]).toarray()
    x = torch.from_numpy(found).float()
    likeness = x @ x.T
    likeness.fill_diagonal_(-torch.inf)
    joined = torch.zeros_like(likeness).scatter_(1, likeness.topk(neighbours, dim=1).indices, 1.0)
    y = torch.as_tensor(news.train_labels, dtype=torch.int64)[drawn]
    return Graph(x, y, torch.maximum(joined, joined.T))
