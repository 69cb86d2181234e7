"""Halflife: how long does a click matter?"""
